use super::super::{Cli, Command};
use super::*;
use clap::{CommandFactory, Parser};
use husk::config::{
    DiskCache, DiskEngine, DiskFormat, OverlayConfig, OverlayDisk, Size, VolumeCache,
};

fn config(args: &[&str]) -> Result<VmConfig, String> {
    let args = ["husk", "run", "--kernel", "k"].iter().chain(args);
    let cli = Cli::try_parse_from(args).map_err(|e| e.to_string())?;
    let Command::Run(run) = cli.command else { panic!("`run` was parsed as something else") };
    run.into_config(false).map(|(config, _)| config).map_err(|e| e.to_string())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_option_reaches_the_configuration() {
    let made = config(&[
        "--initrd",
        "i",
        "--cmdline",
        "c",
        "--append",
        "a",
        "--append",
        "-b",
        "--cpus",
        "3",
        "--memory",
        "1G,shared",
        "--disk",
        "path=d.img,ro,id=root,format=qcow2,backing,cache=direct,engine=io_uring,queues=2,bps=10M,iops=500",
        "--disk",
        "e.img,overlay,overlay_dir=/scratch",
        "--net",
        "tap=tap0,mac=52:54:00:00:00:01",
        "--net",
        "fd=7,id=lan",
        "--net",
        "user",
        "--publish",
        "8080:80",
        "--publish",
        "53:53/udp",
        "--rng",
        "off",
        "--vsock",
        "cid=4,socket=v.sock",
        "--console",
        "file=/tmp/log",
        "--on-reboot",
        "exit",
        "--no-acpi",
        "--boot-protocol",
        "pvh",
    ]);
    let mut wanted = VmConfig::new("k");
    wanted.initrd = Some("i".into());
    wanted.cmdline = Some("c".into());
    wanted.append = "a -b".into();
    wanted.cpus = 3;
    wanted.memory = MemoryConfig { size: Size::mib(1024), shared: true, hugepages: false };
    wanted.disks = vec![
        DiskConfig {
            id: "root".into(),
            path: "d.img".into(),
            format: Some(DiskFormat::Qcow2),
            backing: true,
            readonly: true,
            overlay: false,
            overlay_dir: None,
            cache: DiskCache::Direct,
            engine: DiskEngine::IoUring,
            queues: Some(2),
            bytes_per_second: Some(Size::mib(10)),
            requests_per_second: Some(500),
        },
        DiskConfig {
            path: "e.img".into(),
            overlay: true,
            overlay_dir: Some("/scratch".into()),
            ..DiskConfig::default()
        },
    ];
    let mac = Some("52:54:00:00:00:01".into());
    wanted.nets = vec![
        NetConfig { tap: Some("tap0".into()), mac, ..NetConfig::default() },
        NetConfig { id: "lan".into(), fd: Some(7), ..NetConfig::default() },
        NetConfig {
            user: true,
            publish: vec!["8080:80".parse().unwrap(), "53:53/udp".parse().unwrap()],
            ..NetConfig::default()
        },
    ];
    wanted.rng = false;
    wanted.vsock = Some(VsockConfig { cid: 4, socket: "v.sock".into() });
    wanted.console = ConsoleConfig::File("/tmp/log".into());
    wanted.on_reboot = OnReboot::Exit;
    wanted.acpi = false;
    wanted.boot_protocol = BootProtocol::Pvh;
    assert_eq!(made, Ok(wanted));
}

#[test]
fn mistyped_values_are_refused_with_the_way_out() {
    for (args, hint) in [
        (["--memory", "lots"], "512M"),
        (["--disk", "ro"], "path=FILE"),
        (["--disk", "x,readonly"], "the keys are path, ro, id"),
        (["--disk", "x,engine=magic"], "expected one of `auto`, `io_uring`, `threads`, `sync`"),
        (["--disk", "x,format=vmdk"], "expected `raw` or `qcow2`"),
        (["--disk", "x,overlay=/dir"], "neither on nor off"),
        (["--disk", "x,queues=many"], "queues=many"),
        (["--net", "fd=x"], "descriptor"),
        (["--publish", "80:80"], "--net user"),
        (["--publish", "eighty"], "8080:80"),
        (["--vsock", "cid=3"], "socket=PATH"),
        (["--vsock", "socket=v,cid=x"], "no number"),
        (["--vsock", "socket=v,cidr=1"], "did you mean"),
        (["--overlay", "ram"], "memory, or --overlay disk"),
        (["--overlay", "disk,8G"], "the keys are size, dir"),
        (["--overlay", "disk,size=large"], "large"),
        (["--console", "tty"], "stdio, none, file=PATH, pty"),
        (["--grace", "soon"], "seconds"),
        (["--cpus", "two"], "a number of vCPUs is wanted"),
        (["--timeout", "-1"], "a number of seconds is wanted"),
    ] {
        let error = config(&args).unwrap_err();
        assert!(error.contains(hint), "{args:?}: {error}");
    }
}

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

#[test]
fn an_overlay_is_in_memory_or_on_a_disk_of_its_own() {
    let overlay =
        |text| config(&["--root", "i", "--overlay", text]).unwrap().guest.unwrap().overlay;
    assert_eq!(overlay("memory"), OverlayConfig::Memory);
    assert_eq!(overlay("disk"), OverlayConfig::Disk(OverlayDisk::default()));
    let disk = OverlayDisk { size: Some(Size(8 << 30)), dir: Some("/a,b".into()) };
    assert_eq!(overlay("disk,size=8G,dir=/a,,b"), OverlayConfig::Disk(disk));
    assert!(config(&["--overlay", "disk"]).unwrap_err().contains("--overlay is for a command"));
}

#[test]
fn a_volume_is_a_path_a_tag_and_what_the_guest_may_do() {
    let volume = |text: &str| {
        let VolumeConfig { tag, path, readonly, cache, .. } = parse_volume(text)?;
        Ok::<_, String>((path.to_str().unwrap().to_owned(), tag, readonly, cache))
    };
    let made = |path: &str, tag: &str, readonly, cache| {
        Ok((path.to_owned(), tag.to_owned(), readonly, cache))
    };
    assert_eq!(volume("/src:work"), made("/src", "work", false, VolumeCache::Auto));
    assert_eq!(volume("src:work:ro"), made("src", "work", true, VolumeCache::Auto));
    assert_eq!(volume("./a,b:c:d:rw,cache=never"), made("./a,b:c", "d", false, VolumeCache::Never));
    assert_eq!(volume("/a,b/c:d,cache=always"), made("/a,b/c", "d", false, VolumeCache::Always));
    let mounted = parse_volume("/src:/srv/in:ro,cache=never").unwrap();
    assert_eq!((mounted.mount.as_deref(), &mounted.tag[..]), (Some("/srv/in"), ""));
    assert!(mounted.readonly && mounted.path == std::path::Path::new("/src"));
    assert!(!mounted.overlay && parse_volume("/src:/work:cow").unwrap().overlay);
    for bad in ["", "/src", "/src:", ":work", "/src:ro", "/src:cow"] {
        assert!(volume(bad).unwrap_err().contains("PATH:TAG"), "{bad}");
    }
    assert!(volume("/src:t,cahce=auto").unwrap_err().contains("did you mean `cache`"));
    assert!(volume("/src:t,cache=some").unwrap_err().contains("some"));
}
