//! What is written behind the options of `husk run` that are about smaller devices.

use husk::config::{BalloonConfig, ConsoleDevice, PmemConfig, PortConfig};

use crate::cli::keyvalue::KeyValues;

pub fn parse_console_device(text: &str) -> Result<ConsoleDevice, String> {
    match text {
        "serial" => Ok(ConsoleDevice::Serial),
        "virtio" => Ok(ConsoleDevice::Virtio),
        _ => Err("serial or virtio".to_owned()),
    }
}

pub fn parse_balloon(text: &str) -> Result<BalloonConfig, String> {
    let mut kv = KeyValues::parse("--balloon", &["size"], text)?;
    let size = kv.value("size")?.ok_or("how much? --balloon 256M, or --balloon 0")?;
    let size = size.parse().map_err(|e: husk::config::SizeError| e.to_string())?;
    Ok(BalloonConfig { size })
}

pub fn parse_pmem(text: &str) -> Result<PmemConfig, String> {
    let mut kv = KeyValues::parse("--pmem", &["path", "ro", "id"], text)?;
    Ok(PmemConfig {
        path: kv.value("path")?.ok_or("which file? --pmem path=FILE")?.into(),
        readonly: kv.switch("ro")?,
        id: kv.value("id")?.unwrap_or_default(),
    })
}

pub fn parse_port(text: &str) -> Result<PortConfig, String> {
    let mut kv = KeyValues::parse("--port", &["name", "socket", "file"], text)?;
    Ok(PortConfig {
        name: kv.value("name")?.ok_or("what is it called? --port name=NAME,socket=PATH")?,
        socket: kv.value("socket")?.map(Into::into),
        file: kv.value("file")?.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_name_and_a_host_side_and_mistakes_are_named() {
        let port = parse_port("name=agent,socket=/run/a.sock").unwrap();
        assert_eq!(port.name, "agent");
        assert_eq!((port.socket, port.file), (Some("/run/a.sock".into()), None));
        assert_eq!(parse_port("log,file=x").unwrap().file, Some("x".into()));
        assert!(parse_port("socket=x").unwrap_err().contains("name=NAME"));
        assert!(parse_port("name=a,sokcet=x").unwrap_err().contains("did you mean `socket`"));
        assert_eq!(parse_balloon("256M").unwrap().size, husk::config::Size::mib(256));
        assert!(parse_balloon("much").unwrap_err().contains("512M"));
        let pmem = parse_pmem("root.img,ro").unwrap();
        assert_eq!((pmem.path, pmem.readonly), ("root.img".into(), true));
        assert!(parse_pmem("ro").unwrap_err().contains("path=FILE"));
        assert!(parse_console_device("tty").is_err());
        assert_eq!(parse_console_device("virtio"), Ok(ConsoleDevice::Virtio));
    }
}
