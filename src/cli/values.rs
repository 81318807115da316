//! The values of `husk run`'s options, from text. An error says what is wanted; clap adds what was
//! given, and for which option.

use std::time::Duration;

use husk::config::{
    BalloonConfig, BootProtocol, ConsoleConfig, ConsoleDevice, DiskConfig, DiskFormat,
    MemoryConfig, OnReboot, OverlayConfig, OverlayDisk, PmemConfig, PortConfig, Size, VolumeCache,
    VolumeConfig, VsockConfig,
};
use serde::de::{DeserializeOwned, IntoDeserializer};

use crate::cli::keyvalue::KeyValues;

/// `--cpus`.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a number of vCPUs is wanted, such as 2".to_owned())
}

/// `--memory`.
pub fn parse_memory(text: &str) -> Result<MemoryConfig, String> {
    let mut kv = KeyValues::parse("--memory", &["size", "shared", "hugepages"], text)?;
    let size = kv.value("size")?.ok_or("how much? --memory 512M")?;
    let size: Size = size.parse().map_err(|e: husk::config::SizeError| e.to_string())?;
    Ok(MemoryConfig { size, shared: kv.switch("shared")?, hugepages: kv.switch("hugepages")? })
}

/// `--disk`.
pub fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let known = [
        "path",
        "ro",
        "id",
        "format",
        "backing",
        "overlay",
        "overlay_dir",
        "cache",
        "engine",
        "queues",
        "bps",
        "iops",
    ];
    let mut kv = KeyValues::parse("--disk", &known, text)?;
    let queues = kv.value("queues")?;
    let queues =
        queues.map(|n| n.parse().map_err(|_| format!("queues={n} is no number of queues")));
    let bps = kv.value("bps")?;
    let bps = bps.map(|n| n.parse().map_err(|e: husk::config::SizeError| format!("bps={n}: {e}")));
    let iops = kv.value("iops")?;
    let iops = iops.map(|n| n.parse().map_err(|_| format!("iops={n} is no number of requests")));
    Ok(DiskConfig {
        path: kv.value("path")?.ok_or("which file? --disk path=FILE")?.into(),
        readonly: kv.switch("ro")?,
        id: kv.value("id")?.unwrap_or_default(),
        format: choice(&mut kv, "format")?,
        backing: kv.switch("backing")?,
        overlay: kv.switch("overlay")?,
        overlay_dir: kv.value("overlay_dir")?.map(Into::into),
        cache: choice(&mut kv, "cache")?.unwrap_or_default(),
        engine: choice(&mut kv, "engine")?.unwrap_or_default(),
        queues: queues.transpose()?,
        bytes_per_second: bps.transpose()?,
        requests_per_second: iops.transpose()?,
    })
}

/// The value of `key`, one of those that the configuration knows by the same name.
fn choice<T: DeserializeOwned>(kv: &mut KeyValues, key: &str) -> Result<Option<T>, String> {
    let Some(value) = kv.value(key)? else { return Ok(None) };
    let name = IntoDeserializer::<serde::de::value::Error>::into_deserializer(value.as_str());
    T::deserialize(name).map(Some).map_err(|e| format!("{key}={value}: {e}"))
}

/// `--vsock`.
pub fn parse_vsock(text: &str) -> Result<VsockConfig, String> {
    let mut kv = KeyValues::parse("--vsock", &["socket", "cid"], text)?;
    let cid =
        kv.value("cid")?.map(|cid| cid.parse().map_err(|_| format!("cid={cid} is no number")));
    Ok(VsockConfig {
        cid: cid.transpose()?.unwrap_or_else(VsockConfig::default_cid),
        socket: kv.value("socket")?.ok_or("where on the host? --vsock socket=PATH")?.into(),
    })
}

/// `--console`.
pub fn parse_console(text: &str) -> Result<ConsoleConfig, String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("stdio", "") => Ok(ConsoleConfig::Stdio),
        ("none", "") => Ok(ConsoleConfig::None),
        ("pty", "") => Ok(ConsoleConfig::Pty),
        ("file", path) if !path.is_empty() => Ok(ConsoleConfig::File(path.into())),
        _ => Err("it is one of stdio, none, file=PATH, pty".to_owned()),
    }
}

/// `--console-device`.
pub fn parse_console_device(text: &str) -> Result<ConsoleDevice, String> {
    match text {
        "serial" => Ok(ConsoleDevice::Serial),
        "virtio" => Ok(ConsoleDevice::Virtio),
        _ => Err("it is serial or virtio".to_owned()),
    }
}

/// `--balloon`.
pub fn parse_balloon(text: &str) -> Result<BalloonConfig, String> {
    let mut kv = KeyValues::parse("--balloon", &["size"], text)?;
    let size = kv.value("size")?.ok_or("how much? --balloon 256M, or --balloon 0")?;
    let size = size.parse().map_err(|e: husk::config::SizeError| e.to_string())?;
    Ok(BalloonConfig { size })
}

/// `--pmem`.
pub fn parse_pmem(text: &str) -> Result<PmemConfig, String> {
    let mut kv = KeyValues::parse("--pmem", &["path", "ro", "id"], text)?;
    Ok(PmemConfig {
        path: kv.value("path")?.ok_or("which file? --pmem path=FILE")?.into(),
        readonly: kv.switch("ro")?,
        id: kv.value("id")?.unwrap_or_default(),
    })
}

/// `--volume`: what is behind the last commas is options, and between the last colons tag and mode; the path is
/// what remains. One with a colon in it takes a mode, so that a mistyped one is never taken for a tag.
pub fn parse_volume(text: &str) -> Result<VolumeConfig, String> {
    let (place, options) = behind(text);
    let cache = match options {
        "" => VolumeCache::default(),
        options => parse_cache("--volume", options)?,
    };
    let (place, mode) = match place.rsplit_once(':') {
        Some((place, mode @ ("ro" | "rw" | "cow"))) => (place, Some(mode)),
        _ => (place, None),
    };
    let (readonly, overlay) = (mode == Some("ro"), mode == Some("cow"));
    let wanted = "which directory, and which tag or directory of the guest's? --volume PATH:TAG, or \
                  --volume PATH:/DIR with a command";
    let (path, tag) = place.rsplit_once(':').ok_or(wanted)?;
    if path.is_empty() || tag.is_empty() {
        return Err(wanted.to_owned());
    }
    if mode.is_none() && path.contains(':') {
        return Err(format!(
            "`{tag}` is no mode, which is rw, ro or cow; if a colon belongs to the path, say the mode, too: \
             {place}:rw"
        ));
    }
    let (tag, mount) = match tag.starts_with('/') {
        true => (String::new(), Some(tag.to_owned())),
        false => (tag.to_owned(), None),
    };
    let id = String::new();
    Ok(VolumeConfig { id, tag, mount, path: path.into(), readonly, overlay, cache })
}

/// What stands before the last commas, and the options behind them.
fn behind(text: &str) -> (&str, &str) {
    let mut place = text;
    while let Some((before, option)) = place.rsplit_once(',')
        && !option.contains([':', '/'])
    {
        place = before;
    }
    (place, text.get(place.len()..).unwrap_or_default().trim_start_matches(','))
}

/// What a guest may keep of a directory.
pub fn parse_cache(option: &str, text: &str) -> Result<VolumeCache, String> {
    Ok(choice(&mut KeyValues::parse(option, &["cache"], text)?, "cache")?.unwrap_or_default())
}

/// What an image is that is a root: its format, and whether it may be based on others.
pub fn parse_image(option: &str, text: &str) -> Result<(Option<DiskFormat>, bool), String> {
    let mut kv = KeyValues::parse(option, &["format", "backing"], text)?;
    Ok((choice(&mut kv, "format")?, kv.switch("backing")?))
}

/// `--overlay`.
pub fn parse_overlay(text: &str) -> Result<OverlayConfig, String> {
    let wanted = "where? --overlay memory, or --overlay disk[,size=SIZE][,dir=DIR]";
    let (place, options) = text.split_once(',').unwrap_or((text, ""));
    match (place, options) {
        ("memory", "") => Ok(OverlayConfig::Memory),
        ("disk", "") => Ok(OverlayConfig::Disk(OverlayDisk::default())),
        ("disk", options) => {
            let mut kv = KeyValues::parse_keys("--overlay", &["size", "dir"], options)?;
            let size = kv.value("size")?.map(|size| size.parse()).transpose();
            let size = size.map_err(|e: husk::config::SizeError| e.to_string())?;
            Ok(OverlayConfig::Disk(OverlayDisk { size, dir: kv.value("dir")?.map(Into::into) }))
        }
        _ => Err(wanted.to_owned()),
    }
}

/// `--port`.
pub fn parse_port(text: &str) -> Result<PortConfig, String> {
    let mut kv = KeyValues::parse("--port", &["name", "socket", "file"], text)?;
    Ok(PortConfig {
        name: kv.value("name")?.ok_or("what is it called? --port name=NAME,socket=PATH")?,
        socket: kv.value("socket")?.map(Into::into),
        file: kv.value("file")?.map(Into::into),
    })
}

/// `--on-reboot`.
pub fn parse_on_reboot(text: &str) -> Result<OnReboot, String> {
    match text {
        "exit" => Ok(OnReboot::Exit),
        "restart" => Ok(OnReboot::Restart),
        _ => Err("it is exit or restart".to_owned()),
    }
}

/// `--boot-protocol`.
pub fn parse_protocol(text: &str) -> Result<BootProtocol, String> {
    match text {
        "auto" => Ok(BootProtocol::Auto),
        "pvh" => Ok(BootProtocol::Pvh),
        "linux64" => Ok(BootProtocol::Linux64),
        _ => Err("it is auto, pvh or linux64".to_owned()),
    }
}

/// An option that is on or off.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

/// An amount of time.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "a number of seconds is wanted, such as 10 or 0.5".to_owned())
}
