//! `--net`: a network interface on the command line.

use husk::config::{NetConfig, RateLimiter, Size, TokenBucket, Vhost};

use super::keyvalue::KeyValues;

const KEYS: &[&str] = &[
    "tap",
    "fd",
    "user",
    "link",
    "address",
    "mac",
    "mtu",
    "queues",
    "vhost",
    "rx_bandwidth",
    "tx_bandwidth",
    "rx_ops",
    "tx_ops",
    "id",
];

/// Reads the value of `--net`.
pub fn parse(text: &str) -> Result<NetConfig, String> {
    let mut kv = KeyValues::parse_keys("--net", KEYS, text)?;
    let fd = kv.value("fd")?;
    let fd = fd.map(|fd| fd.parse().map_err(|_| format!("fd={fd} is no descriptor number")));
    let vhost = kv.value("vhost")?.map(|vhost| match vhost.as_str() {
        "on" => Ok(Vhost::On),
        "off" => Ok(Vhost::Off),
        "auto" => Ok(Vhost::Auto),
        other => Err(format!("vhost={other} is neither on nor off nor auto")),
    });
    let address = kv.value("address")?.map(|text| {
        text.parse().map_err(|e: husk::config::AddressError| format!("address={text}: {e}"))
    });
    Ok(NetConfig {
        tap: kv.value("tap")?,
        fd: fd.transpose()?,
        user: kv.switch("user")?,
        publish: Vec::new(),
        link: kv.value("link")?,
        address: address.transpose()?,
        mac: kv.value("mac")?,
        mtu: number(&mut kv, "mtu")?,
        queues: number(&mut kv, "queues")?,
        vhost: vhost.transpose()?,
        rx_rate_limiter: limiter(&mut kv, "rx_bandwidth", "rx_ops")?,
        tx_rate_limiter: limiter(&mut kv, "tx_bandwidth", "tx_ops")?,
        id: kv.value("id")?.unwrap_or_default(),
    })
}

fn number<T: std::str::FromStr>(kv: &mut KeyValues<'_>, key: &str) -> Result<Option<T>, String> {
    let value = kv.value(key)?;
    value
        .map(|text| text.parse().map_err(|_| format!("{key}={text} is no number husk can use")))
        .transpose()
}

fn limiter(
    kv: &mut KeyValues<'_>,
    bandwidth: &str,
    ops: &str,
) -> Result<Option<RateLimiter>, String> {
    let bytes = kv.value(bandwidth)?.map(|text| {
        text.parse::<Size>().map_err(|e| format!("{bandwidth}= is in bytes a second: {e}"))
    });
    let bytes = bytes.transpose()?.map(|size| TokenBucket::per_second(size.0));
    let ops = number(kv, ops)?.map(TokenBucket::per_second);
    let some = bytes.is_some() || ops.is_some();
    Ok(some.then_some(RateLimiter { bandwidth: bytes, ops }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_effect() {
        let made = parse(
            "tap=tap0,mac=52:54:00:00:00:01,mtu=9000,queues=2,vhost=off,rx_bandwidth=10M,\
             tx_bandwidth=1M,tx_ops=100,id=lan",
        );
        let per_second = |size| Some(TokenBucket::per_second(size));
        let wanted = NetConfig {
            id: "lan".to_owned(),
            tap: Some("tap0".to_owned()),
            mac: Some("52:54:00:00:00:01".to_owned()),
            mtu: Some(9000),
            queues: Some(2),
            vhost: Some(Vhost::Off),
            rx_rate_limiter: Some(RateLimiter { bandwidth: per_second(10 << 20), ops: None }),
            tx_rate_limiter: Some(RateLimiter {
                bandwidth: per_second(1 << 20),
                ops: per_second(100),
            }),
            ..NetConfig::default()
        };
        assert_eq!(made, Ok(wanted));
        assert_eq!(parse("user"), Ok(NetConfig { user: true, ..NetConfig::default() }));
        let link = NetConfig { link: Some("a".to_owned()), ..NetConfig::default() };
        assert_eq!(parse("link=a"), Ok(link.clone()));
        let address = Some("10.0.9.1/24".parse().unwrap());
        assert_eq!(parse("link=a,address=10.0.9.1/24"), Ok(NetConfig { address, ..link }));
    }

    #[test]
    fn mistakes_name_the_key() {
        for (text, hint) in [
            ("fd=x", "descriptor"),
            ("uesr", "did you mean `user`"),
            ("tap0,mtu=1500", "did you mean `tap`"),
            ("tap=a,address=10.0.9.1", "10.0.9.1/24"),
            ("tap=a,queues=many", "queues=many"),
            ("tap=a,mtu=70000", "mtu=70000"),
            ("tap=a,vhost=maybe", "auto"),
            ("tap=a,rx_bandwidth=fast", "rx_bandwidth"),
            ("tap=a,rx_bandwith=1", "did you mean `rx_bandwidth`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
