//! A network interface: which network it is on, and what the guest sees of it.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::str::FromStr;

use husk_devices::virtio::net::tap::is_interface_name;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::InterfaceAddress;
use super::error::ConfigError;

/// The most pairs of queues of an interface.
const QUEUES_MAX: u16 = husk_devices::virtio::net::MAX_PAIRS;
/// An MTU with which Linux still does IPv4, and the largest a virtio network card has.
const MTU: std::ops::RangeInclusive<u16> = husk_devices::virtio::net::MTU_RANGE;

/// A network interface. One of `tap`, `fd`, `user` and `link` says which network it is on; see
/// [`NetConfig::host`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Names the interface in messages; its MAC address is derived from it. Unique.
    #[serde(default)]
    pub id: String,
    /// The host's TAP device, by name: an existing one, or one to be created for the VM's life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The host's TAP device as a descriptor inherited from the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<RawFd>,
    /// The host's own networks, through passt, without privileges.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub user: bool,
    /// With `user`: ports of the host that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// One other VM of the same user, which has given the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The address that the agent of a guest that runs commands gives it; without it, with `user`, the
    /// one that passt has for it, and with anything else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<InterfaceAddress>,
    /// The guest's MAC address, `52:54:00:12:34:56`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet in bytes; without it that of the TAP, 65520 with `user`, else 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// With `tap`: pairs of queues; without it one a vCPU, at most 4, if the TAP has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// With `tap` and `fd`: whether the host's kernel moves the frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<Vhost>,
    /// What may go to the guest in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What may come from the guest in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// The network an interface is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetHost<'a> {
    /// A TAP by name.
    Tap(&'a str),
    /// An inherited TAP.
    Fd(RawFd),
    /// passt.
    User,
    /// Another VM.
    Link(&'a str),
}

/// Whether the host's kernel moves the frames (`vhost-net`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vhost {
    /// If it can, which is only said in the log.
    #[default]
    Auto,
    /// Yes, or there is no VM.
    On,
    /// No.
    Off,
}

/// What may pass in a time, in one direction; for each pair of queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// In frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// So many in a time; that many may pass at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many.
    pub size: u64,
    /// The time, in milliseconds.
    #[serde(default = "second")]
    pub refill_time: u64,
}

fn second() -> u64 {
    1000
}

impl TokenBucket {
    /// So many a second.
    pub fn per_second(size: u64) -> Self {
        Self { size, refill_time: second() }
    }
}

/// A port of the host that leads to the guest: `[ADDRESS:]HOST:GUEST[/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Which of the host's addresses; all of IPv4 without.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// What is no [`Publish`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` publishes no port: HOST:GUEST, as in 8080:80, 127.0.0.1:8080:80, [::1]:8080:80 or 5353:53/udp"
)]
pub struct PublishError(String);

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let error = || PublishError(text.to_owned());
        let (ports, udp) = match text.split_once('/') {
            Some((ports, "udp")) => (ports, true),
            Some((ports, "tcp")) => (ports, false),
            Some(_) => return Err(error()),
            None => (text, false),
        };
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port @ 1..) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(error()),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(error)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let address = bare.unwrap_or(address).parse().map_err(|_| error())?;
                (Some(address), host)
            }
            None => (None, rest),
        };
        Ok(Self { address, host: port(host)?, guest: port(guest)?, udp })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}:{}{}", self.host, self.guest, if self.udp { "/udp" } else { "" })
    }
}

impl Serialize for Publish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl NetConfig {
    /// Which network the interface is on.
    ///
    /// # Errors
    /// When that is said not at all, or twice.
    pub fn host(&self) -> Result<NetHost<'_>, ConfigError> {
        let said = [
            self.tap.as_deref().map(NetHost::Tap),
            self.fd.map(NetHost::Fd),
            self.user.then_some(NetHost::User),
            self.link.as_deref().map(NetHost::Link),
        ];
        let mut said = said.into_iter().flatten();
        match (said.next(), said.next()) {
            (Some(host), None) => Ok(host),
            _ => Err(ConfigError::NetBackend(self.id.clone())),
        }
    }

    /// Whether anything limits it.
    pub(crate) fn is_limited(&self) -> bool {
        [self.rx_rate_limiter, self.tx_rate_limiter]
            .into_iter()
            .flatten()
            .any(|limiter| limiter.bandwidth.is_some() || limiter.ops.is_some())
    }

    /// Checks what can be checked without the host.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |option: &'static str, why: &'static str| {
            Err(ConfigError::NetOption { id: self.id.clone(), option, why })
        };
        let host = self.host()?;
        match host {
            NetHost::Tap(name) if !is_interface_name(name) => {
                return Err(ConfigError::TapName(name.to_owned()));
            }
            NetHost::Link(name) if !is_link_name(name) => {
                return Err(ConfigError::LinkName(name.to_owned()));
            }
            _ => {}
        }
        if let Some(mac) = &self.mac {
            parse_mac(mac)?;
        }
        if self.mtu.is_some_and(|mtu| !MTU.contains(&mtu)) {
            return wrong("mtu", "an MTU has 68 to 65535 bytes");
        }
        match self.queues {
            Some(queues) if !(1..=QUEUES_MAX).contains(&queues) => {
                return wrong("queues", "an interface has 1 to 16 pairs of queues");
            }
            Some(2..) if !matches!(host, NetHost::Tap(_)) => {
                return wrong("queues", "only tap=NAME has several");
            }
            _ => {}
        }
        if !self.publish.is_empty() && host != NetHost::User {
            return wrong("publish", "only --net user publishes ports");
        }
        let is_tap = matches!(host, NetHost::Tap(_) | NetHost::Fd(_));
        match self.vhost {
            Some(Vhost::On) if !is_tap => return wrong("vhost", "only a TAP has vhost-net"),
            Some(Vhost::On) if self.is_limited() => {
                return wrong(
                    "vhost",
                    "vhost-net knows no limits: leave out vhost=on or the limit",
                );
            }
            _ => {}
        }
        let limiters = [self.rx_rate_limiter, self.tx_rate_limiter].into_iter().flatten();
        for bucket in limiters.flat_map(|l| [l.bandwidth, l.ops]).flatten() {
            if bucket.size == 0 || bucket.refill_time == 0 {
                return wrong("a limit of 0", "nothing would ever pass");
            }
            // The rate, which is what passes in a second, is a whole number of 64 bits.
            let rate = u128::from(bucket.size) * 1000 / u128::from(bucket.refill_time);
            if rate == 0 || rate > u128::from(u64::MAX) {
                return wrong(
                    "a limit",
                    "at least one, and at most 2^64 - 1, must pass in a second",
                );
            }
        }
        Ok(())
    }
}

/// A name that is a part of a file's.
fn is_link_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=32).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

/// Reads a unicast MAC address.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], ConfigError> {
    let error = || ConfigError::Mac(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
    }
    let multicast = mac[0] & 1 != 0;
    if parts.next().is_some() || multicast || mac == [0; 6] {
        return Err(error());
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap() -> NetConfig {
        NetConfig { id: "n".to_owned(), tap: Some("tap0".to_owned()), ..NetConfig::default() }
    }

    fn link(name: &str) -> NetConfig {
        NetConfig { tap: None, link: Some(name.to_owned()), ..tap() }
    }

    fn user() -> NetConfig {
        NetConfig { tap: None, user: true, ..tap() }
    }

    #[test]
    fn an_interface_is_on_one_network() {
        assert_eq!(tap().host(), Ok(NetHost::Tap("tap0")));
        assert_eq!(link("a").host(), Ok(NetHost::Link("a")));
        assert_eq!(user().host(), Ok(NetHost::User));
        let none = NetConfig { tap: None, ..tap() };
        let two = NetConfig { fd: Some(3), ..tap() };
        for config in [none, two, NetConfig { user: true, ..tap() }] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("tap=NAME") && error.contains("link=NAME"), "{error}");
        }
    }

    #[test]
    fn names_and_addresses_are_what_the_host_and_the_guest_take() {
        for name in ["sixteen-bytes-xx", "a/b", "", "."] {
            let config = NetConfig { tap: Some(name.to_owned()), ..tap() };
            assert_eq!(config.validate(), Err(ConfigError::TapName(name.to_owned())));
        }
        for name in ["", "../x", ".hidden", "a b", &"x".repeat(33)] {
            assert_eq!(link(name).validate(), Err(ConfigError::LinkName(name.to_owned())));
        }
        for mac in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "53:54:00:12:34:56", "zz:54:00:12:34:56"]
        {
            let config = NetConfig { mac: Some(mac.to_owned()), ..tap() };
            assert_eq!(config.validate(), Err(ConfigError::Mac(mac.to_owned())));
        }
    }

    #[test]
    fn an_option_that_a_network_has_not_is_refused_by_name() {
        let limited =
            Some(RateLimiter { bandwidth: Some(TokenBucket::per_second(1 << 20)), ops: None });
        let nothing = Some(RateLimiter { bandwidth: None, ops: Some(TokenBucket::per_second(0)) });
        let publish = vec!["80:80".parse().unwrap()];
        let on = Some(Vhost::On);
        for (config, option) in [
            (NetConfig { queues: Some(2), ..user() }, "queues"),
            (NetConfig { queues: Some(0), ..tap() }, "queues"),
            (NetConfig { queues: Some(17), ..tap() }, "queues"),
            (NetConfig { mtu: Some(67), ..tap() }, "mtu"),
            (NetConfig { publish, ..tap() }, "publish"),
            (NetConfig { vhost: on, ..link("a") }, "vhost"),
            (NetConfig { vhost: on, tx_rate_limiter: limited, ..tap() }, "vhost"),
            (NetConfig { rx_rate_limiter: nothing, ..tap() }, "limit"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(option), "{config:?}: {error}");
        }
        let all = NetConfig { queues: Some(4), mtu: Some(9000), vhost: on, ..tap() };
        assert_eq!(all.validate(), Ok(()));
        let limited = NetConfig { rx_rate_limiter: limited, vhost: Some(Vhost::Auto), ..tap() };
        assert_eq!(limited.validate(), Ok(()));
    }

    #[test]
    fn ports_are_published_as_they_are_written() {
        for text in ["8080:80", "127.0.0.1:8080:80", "5353:53/udp", "[::1]:1:65535/udp"] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        assert_eq!("1:2/tcp".parse::<Publish>().unwrap().to_string(), "1:2");
        for text in ["", "80", "0:80", "80:0", "65536:1", "a:80", "80:80/sctp", "+1:2", "x:1:2"] {
            let error = text.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains("8080:80"), "{text}: {error}");
        }
    }
}
