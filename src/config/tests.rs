use super::*;

fn disk(id: &str) -> DiskConfig {
    DiskConfig { id: id.to_owned(), path: "/x".into(), ..DiskConfig::default() }
}

fn net(id: &str) -> NetConfig {
    NetConfig { id: id.to_owned(), tap: Some("tap0".to_owned()), ..NetConfig::default() }
}

fn volume(tag: &str) -> VolumeConfig {
    VolumeConfig {
        id: String::new(),
        tag: tag.to_owned(),
        mount: None,
        path: "/x".into(),
        readonly: true,
        overlay: false,
        cache: VolumeCache::Auto,
    }
}

#[test]
fn volumes_have_a_tag_of_their_own_that_a_guest_can_type() {
    let mut config = VmConfig::new("k");
    config.volumes = vec![volume("src"), volume(&"x".repeat(36))];
    config.name_devices();
    assert_eq!(config.volumes[1].id, "fs1");
    assert_eq!(config.validate(), Ok(()));
    for tag in ["", "a b", "a/b", "ä", &"x".repeat(37)] {
        config.volumes[1].tag = tag.to_owned();
        assert_eq!(config.validate(), Err(ConfigError::VolumeTag(tag.to_owned())));
    }
    config.volumes[1].tag = "src".to_owned();
    assert_eq!(config.validate(), Err(ConfigError::DuplicateTag("src".to_owned())));
    config.volumes[1] = VolumeConfig { path: "".into(), id: "v".to_owned(), ..volume("b") };
    assert!(config.validate().unwrap_err().to_string().contains("volume b: its path is empty"));
    let json = r#"{"kernel": "k", "volumes": [{"tag": "t", "path": "p", "cache": "sometimes"}]}"#;
    assert!(VmConfig::from_json(json).unwrap_err().contains("sometimes"));
}

#[test]
fn a_volume_is_mounted_where_there_is_somebody_to_mount_it() {
    let mut config = VmConfig::new("k");
    config.volumes = vec![volume("src"), VolumeConfig { mount: Some("/w".into()), ..volume("") }];
    config.name_devices();
    assert_eq!(config.volumes[1].tag, "vol1");
    assert!(config.validate().unwrap_err().to_string().contains("runs a command"));
    config.guest = Some(GuestConfig::default());
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config.clone()));
    for wrong in ["w", "", "/", "/a\0b", &format!("/{}", "x".repeat(255))] {
        config.volumes[1].mount = Some(wrong.to_owned());
        assert!(matches!(config.validate(), Err(ConfigError::VolumeMount { .. })), "{wrong:?}");
    }
}

#[test]
fn an_overlay_is_for_a_volume_that_is_mounted_and_not_read_only_anyway() {
    let mut config = VmConfig::new("k");
    config.guest = Some(GuestConfig::default());
    let mounted = VolumeConfig { mount: Some("/w".into()), readonly: false, ..volume("") };
    config.volumes = vec![VolumeConfig { overlay: true, ..mounted.clone() }];
    config.name_devices();
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config.clone()));
    config.volumes[0].readonly = true;
    assert!(config.validate().unwrap_err().to_string().contains("read-only"));
    config.volumes[0] = VolumeConfig { overlay: true, mount: None, readonly: false, ..volume("t") };
    config.name_devices();
    assert!(config.validate().unwrap_err().to_string().contains("instead of a tag"));
}

#[test]
fn a_disk_for_overlays_is_a_device_of_a_size_that_it_can_have_and_above_something() {
    let mut config = VmConfig::new("k");
    config.disks = vec![DiskConfig { readonly: true, ..disk("d") }];
    let on = |size| OverlayConfig::Disk(OverlayDisk { size, dir: Some("/scratch".into()) });
    let with = |overlay, root| GuestConfig { overlay, root, ..GuestConfig::default() };
    let root = RootConfig::on_disk("d");
    config.guest = Some(with(on(Some(Size::mib(64))), Some(root.clone())));
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config.clone()));
    let alone = VmConfig::from_json(r#"{"guest": {"overlay": "disk"}}"#).unwrap_err();
    assert!(alone.contains(r#"a name alone, expected an object"#), "{alone}");
    assert!(alone.contains(r#"{"disk": {}}"#), "{alone}");
    let json = r#"{"guest": {"overlay": {"disk": {"size": "8G"}}}}"#;
    let read = VmConfig::from_json(json).unwrap().guest.unwrap();
    assert_eq!(read.overlay_disk().unwrap().size, Some(Size(8 << 30)));
    let refusal = |config: &VmConfig| config.validate().unwrap_err().to_string();
    for size in [Size::mib(15), Size(9 << 40)] {
        config.guest = Some(with(on(Some(size)), Some(root.clone())));
        assert!(refusal(&config).contains("16M to 8T"), "{}", refusal(&config));
    }
    let above_nothing = [
        None,
        Some(RootConfig { readonly: true, ..root.clone() }),
        Some(RootConfig { writable: true, ..root.clone() }),
    ];
    for root in above_nothing {
        config.disks[0].readonly = !root.as_ref().is_some_and(|root| root.writable);
        config.guest = Some(with(on(None), root));
        assert!(refusal(&config).contains("the VM has none"), "{}", refusal(&config));
    }
    let work = VolumeConfig { mount: Some("/w".into()), readonly: false, ..volume("") };
    config.volumes = vec![VolumeConfig { overlay: true, ..work }];
    config.name_devices();
    assert_eq!(config.validate(), Ok(()));
    config.disks[0].id = "overlay".into();
    config.guest.as_mut().unwrap().root = None;
    assert!(matches!(config.validate(), Err(ConfigError::DuplicateId(_))));
}

#[test]
fn a_guests_root_is_on_one_disk_or_volume_that_can_be_what_it_is_to_be() {
    let with = |root: RootConfig| {
        let mut config = VmConfig::new("k");
        config.disks = vec![DiskConfig { readonly: true, ..disk("d") }];
        let other = VolumeConfig { mount: Some("/w".into()), ..volume("w") };
        config.volumes = vec![VolumeConfig { id: "v".into(), ..volume("v") }, other];
        config.name_devices();
        config.guest = Some(GuestConfig { root: Some(root), ..GuestConfig::default() });
        assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config.clone()));
        config.validate().map_err(|e| e.to_string())
    };
    for root in [RootConfig::on_disk("d"), RootConfig::on_volume("v")] {
        assert_eq!(with(root.clone()), Ok(()));
        assert_eq!(with(RootConfig { readonly: true, ..root.clone() }), Ok(()));
        let error = with(RootConfig { writable: true, ..root.clone() }).unwrap_err();
        assert!(error.contains("to be written to, and its"), "{error}");
        let both = RootConfig { writable: true, readonly: true, ..root };
        assert!(with(both).unwrap_err().contains("leave one"));
    }
    assert!(with(RootConfig::default()).unwrap_err().contains("either"));
    let both = RootConfig { volume: Some("v".into()), ..RootConfig::on_disk("d") };
    assert!(with(both).unwrap_err().contains("either"));
    assert!(with(RootConfig::on_disk("v")).unwrap_err().contains("disk `v`"));
    assert!(with(RootConfig::on_volume("d")).unwrap_err().contains("volume `d`"));
    assert!(with(RootConfig::on_volume("fs1")).unwrap_err().contains("nowhere else"));
}

#[test]
fn directories_in_memory_have_a_place_in_the_guest() {
    let mut config = VmConfig::new("k");
    let guest = |tmpfs: &[&str]| {
        let tmpfs = tmpfs.iter().map(|path| (*path).to_owned()).collect();
        Some(GuestConfig { tmpfs, ..GuestConfig::default() })
    };
    config.guest = guest(&["/tmp", "/var/tmp"]);
    assert_eq!(config.validate(), Ok(()));
    for wrong in ["", "tmp", "/", "/a\0"] {
        config.guest = guest(&[wrong]);
        assert!(matches!(config.validate(), Err(ConfigError::Tmpfs { .. })), "{wrong:?}");
    }
    config.guest = guest(&["/t"; 33]);
    assert_eq!(config.validate(), Err(ConfigError::TooManyTmpfs(33)));
}

#[test]
fn a_configuration_reads_back_as_it_was_written() {
    let mut config = VmConfig::new("/boot/vmlinuz");
    config.memory = MemoryConfig { size: Size::mib(1024), shared: true, hugepages: false };
    config.disks.push(disk("root"));
    config.nets.push(net("lan"));
    let limiter = RateLimiter { bandwidth: Some(TokenBucket::per_second(5)), ops: None };
    config.nets.push(NetConfig {
        tap: None,
        user: true,
        publish: vec!["127.0.0.1:8080:80".parse().unwrap()],
        tx_rate_limiter: Some(limiter),
        vhost: Some(Vhost::Off),
        ..net("wan")
    });
    config.volumes.push(VolumeConfig { cache: VolumeCache::Never, ..volume("src") });
    config.vsock = Some(VsockConfig { cid: 7, socket: "/run/v.sock".into() });
    config.console = ConsoleConfig::File("/tmp/log".into());
    config.on_reboot = OnReboot::Exit;
    assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config));
}

#[test]
fn the_smallest_file_is_a_kernel() {
    let config = VmConfig::from_json(r#"{"kernel": "k"}"#).unwrap();
    assert_eq!(config, VmConfig::new("k"));
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_one() {
    let error = VmConfig::from_json(r#"{"kernel": "k", "memroy": {"size": "1G"}}"#).unwrap_err();
    assert!(error.contains("did you mean `memory`?"), "{error}");
    let error = VmConfig::from_json(r#"{"kernel": "k", "disks": [{"pth": "x"}]}"#).unwrap_err();
    assert!(error.contains("did you mean `path`?") && error.contains("line 1"), "{error}");
    let error = VmConfig::from_json(r#"{"kernel": "k", "on_reboot": "exti"}"#).unwrap_err();
    assert!(error.contains("did you mean `exit`?"), "{error}");
}

#[test]
fn malformed_json_and_wrong_types_name_the_place() {
    for text in ["", "{", "[]", r#"{"kernel": 1}"#, r#"{"kernel": "k", "cpus": "two"}"#] {
        let error = VmConfig::from_json(text).unwrap_err();
        assert!(error.contains("line 1"), "{text}: {error}");
        for rust in ["u32", "struct", "VmConfig"] {
            assert!(!error.contains(rust), "{text}: {error}");
        }
    }
}

#[test]
fn what_is_expected_is_said_in_words() {
    for (text, words) in [
        (
            r#"{"cpus": "two"}"#,
            "string \"two\", expected a whole number from 0 to 4294967295 at line 1",
        ),
        (r#"{"disks": 1}"#, "expected a list"),
        (r#"{"disks": [1]}"#, "expected an object"),
        (r#"{"append": 1}"#, "expected a text"),
        (r#"{"rng": "on"}"#, "expected true or false"),
        (r#"{"memory": true}"#, "expected a size such as \"512M\""),
    ] {
        let error = VmConfig::from_json(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn memory_is_an_object_or_just_a_size() {
    let memory = |json: &str| {
        let config = VmConfig::from_json(&format!(r#"{{"kernel": "k", "memory": {json}}}"#));
        config.map(|config| config.memory)
    };
    let gib = MemoryConfig::from(Size::mib(1024));
    for json in [r#""1G""#, "1073741824", r#"{"size": "1G"}"#, r#"{"size": 1073741824}"#] {
        assert_eq!(memory(json), Ok(gib), "{json}");
    }
    let shared = MemoryConfig { shared: true, ..gib };
    assert_eq!(memory(r#"{"size": "1G", "shared": true}"#), Ok(shared));
    for json in [r#""1X""#, "-1", "1.5", "{}", r#"["1G"]"#, r#"{"size": "1G", "shraed": true}"#] {
        assert!(memory(json).is_err(), "{json}");
    }
}

#[test]
fn a_vm_without_a_kernel_can_be_read_and_not_run() {
    let config = VmConfig::from_json("{}").unwrap();
    assert_eq!(config.validate(), Err(ConfigError::NoKernel));
}

#[test]
fn cpus_and_memory_out_of_bounds_are_refused() {
    for cpus in [0, 65, u32::MAX] {
        let mut config = VmConfig::new("k");
        config.cpus = cpus;
        assert_eq!(config.validate(), Err(ConfigError::Cpus(cpus)));
    }
    for bytes in [0, 1 << 20, (512 << 20) + 1, u64::MAX] {
        let mut config = VmConfig::new("k");
        config.memory.size = Size(bytes);
        assert!(matches!(config.validate(), Err(ConfigError::Memory { .. })), "{bytes}");
    }
    let mut config = VmConfig::new("k");
    config.memory = MemoryConfig { size: Size((64 << 20) + 4096), shared: false, hugepages: true };
    assert!(matches!(config.validate(), Err(ConfigError::Memory { .. })));
}

#[test]
fn a_guest_of_64_gib_and_64_cpus_is_accepted() {
    let mut config = VmConfig::new("k");
    (config.cpus, config.memory.size) = (64, "64G".parse().unwrap());
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn device_ids_are_unique_and_usable() {
    let mut config = VmConfig::new("k");
    config.disks = vec![disk("a"), disk("b")];
    config.nets = vec![net("a")];
    assert_eq!(config.validate(), Err(ConfigError::DuplicateId("a".to_owned())));
    for id in ["", "a b", "twenty-one-characters"] {
        config.disks = vec![disk(id)];
        config.nets.clear();
        assert!(matches!(config.validate(), Err(ConfigError::BadId { .. })), "{id}");
    }
}

#[test]
fn devices_without_an_id_get_one() {
    let mut config = VmConfig::new("k");
    config.disks = vec![disk(""), disk("data"), disk("")];
    config.nets = vec![net("")];
    config.name_devices();
    let ids: Vec<_> = config.disks.iter().map(|d| d.id.as_str()).collect();
    assert_eq!(ids, ["disk0", "data", "disk2"]);
    assert_eq!(config.nets[0].id, "net0");
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn there_are_no_more_devices_than_interrupts() {
    let mut config = VmConfig::new("k");
    config.disks = (0..18).map(|n| disk(&format!("d{n}"))).collect();
    assert_eq!(config.validate(), Err(ConfigError::TooManyDevices(19)));
    let words = ConfigError::TooManyDevices(19).to_string();
    assert!(
        words.starts_with("19 virtio devices") && words.contains("interrupts for 18"),
        "{words}"
    );
    config.rng = false;
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn a_vsock_has_a_guests_cid_and_a_socket_with_room_for_ports() {
    let with = |cid, socket: &str| {
        let mut config = VmConfig::new("k");
        config.vsock = Some(VsockConfig { cid, socket: socket.into() });
        config.validate()
    };
    assert_eq!(with(3, &"x".repeat(96)), Ok(()));
    assert_eq!(with(u32::MAX - 1, "v"), Ok(()));
    for cid in [0, 1, 2, u32::MAX] {
        assert_eq!(with(cid, "v"), Err(ConfigError::VsockCid(cid)));
    }
    for socket in ["".to_owned(), "x".repeat(97)] {
        assert_eq!(with(3, &socket), Err(ConfigError::VsockSocket(socket.into())));
    }
    let config = VmConfig::from_json(r#"{"kernel": "k", "vsock": {"socket": "v"}}"#).unwrap();
    assert_eq!(config.vsock, Some(VsockConfig { cid: 3, socket: "v".into() }));
}

#[test]
fn no_device_is_described_twice() {
    for parameter in ["virtio_mmio.device=4K@0xd0000000:6", "a virtio-mmio.device=4K@0xd0000000:6"]
    {
        let mut config = VmConfig::new("k");
        config.append = parameter.to_owned();
        assert!(matches!(config.validate(), Err(ConfigError::ReservedParameter(_))));
        config.acpi = false;
        assert!(matches!(config.validate(), Err(ConfigError::ReservedParameter(_))));
    }
}

#[test]
fn what_is_not_the_kernels_parameter_is_not_taken_for_it() {
    for text in
        ["x=virtio_mmio.device=1", r#"x="a virtio_mmio.device=1""#, "-- virtio_mmio.device=1"]
    {
        let mut config = VmConfig::new("k");
        config.append = text.to_owned();
        assert_eq!(config.validate(), Ok(()), "{text}");
    }
}

#[test]
fn no_device_takes_the_name_of_the_entropy_source_or_the_sockets() {
    let mut config = VmConfig::new("k");
    config.disks = vec![disk("rng")];
    assert_eq!(config.validate(), Err(ConfigError::DuplicateId("rng".to_owned())));
    config.rng = false;
    assert_eq!(config.validate(), Ok(()));
    config.disks = vec![disk("vsock")];
    assert_eq!(config.validate(), Ok(()));
    config.vsock = Some(VsockConfig { cid: 3, socket: "v".into() });
    assert_eq!(config.validate(), Err(ConfigError::DuplicateId("vsock".to_owned())));
    // The agent has that device whoever starts it, and one of both does.
    config.vsock = None;
    config.validate().unwrap();
    config.agent = true;
    assert_eq!(config.validate(), Err(ConfigError::DuplicateId("vsock".to_owned())));
    config.disks.clear();
    config.validate().unwrap();
    assert!(VmConfig::from_json(&config.to_json().unwrap()).unwrap().agent);
    config.guest = Some(GuestConfig::default());
    assert_eq!(config.validate(), Err(ConfigError::TwoAgents));
}

#[test]
fn a_disk_has_some_queues_and_limits_that_let_something_pass() {
    let refused = |change: fn(&mut DiskConfig)| {
        let mut config = VmConfig::new("k");
        config.disks = vec![disk("d")];
        change(&mut config.disks[0]);
        config.validate().unwrap_err()
    };
    for queues in [0, 17] {
        let why = match queues {
            0 => refused(|d| d.queues = Some(0)),
            _ => refused(|d| d.queues = Some(17)),
        };
        assert_eq!(why, ConfigError::Queues { id: "d".to_owned(), queues });
    }
    let nothing = ConfigError::NoBudget("d".to_owned());
    assert_eq!(refused(|d| d.bytes_per_second = Some(Size(0))), nothing);
    assert_eq!(refused(|d| d.requests_per_second = Some(0)), nothing);
}

#[test]
fn ports_have_one_host_side_and_a_name_of_their_own() {
    let port =
        |name: &str| PortConfig { name: name.to_owned(), socket: Some("/s".into()), file: None };
    let with = |ports: Vec<PortConfig>| {
        let mut config = VmConfig::new("k");
        config.ports = ports;
        config.validate()
    };
    assert_eq!(with(vec![port("org.qemu.guest_agent.0"), port("b")]), Ok(()));
    for name in ["", "..", "a/b", "a b", &"x".repeat(65)] {
        assert_eq!(with(vec![port(name)]), Err(ConfigError::PortName(name.to_owned())));
    }
    let duplicate = ConfigError::DuplicatePort("a".to_owned());
    assert_eq!(with(vec![port("a"), port("a")]), Err(duplicate));
    for (socket, file) in [(None, None), (Some("/s".into()), Some("/f".into()))] {
        let wrong = PortConfig { socket, file, ..port("a") };
        assert_eq!(with(vec![wrong]), Err(ConfigError::PortBackend("a".to_owned())));
    }
    let many = (0..17).map(|n| port(&n.to_string())).collect();
    assert_eq!(with(many), Err(ConfigError::TooManyPorts(17)));
}

#[test]
fn a_console_device_and_ports_read_back_as_they_were_written() {
    let mut config = VmConfig::new("k");
    config.console_device = ConsoleDevice::Virtio;
    config.ports = vec![PortConfig { name: "a".into(), socket: None, file: Some("/f".into()) }];
    assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config));
}

#[test]
fn a_balloon_leaves_the_guest_some_memory_and_needs_small_pages() {
    let mut config = VmConfig::new("k");
    config.balloon = Some(BalloonConfig { size: Size::mib(511) });
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(VmConfig::from_json(&config.to_json().unwrap()), Ok(config.clone()));
    config.balloon = Some(BalloonConfig { size: Size::mib(512) });
    assert!(matches!(config.validate(), Err(ConfigError::Balloon { .. })));
    config.balloon = VmConfig::from_json(r#"{"kernel": "k", "balloon": {}}"#).unwrap().balloon;
    assert_eq!(config.validate(), Ok(()));
    config.memory.hugepages = true;
    assert!(matches!(config.validate(), Err(ConfigError::Balloon { .. })));
}

#[test]
fn options_of_a_disk_that_do_not_go_together_are_refused_with_the_way_out() {
    let refusal = |change: fn(&mut DiskConfig)| {
        let mut config = VmConfig::new("k");
        config.disks = vec![disk("d")];
        change(&mut config.disks[0]);
        config.validate().map_err(|e| e.to_string())
    };
    for (change, hint) in [
        (
            (|d| (d.overlay, d.readonly) = (true, true)) as fn(&mut DiskConfig),
            "leave one of them out",
        ),
        (|d| d.overlay_dir = Some("/x".into()), "add overlay"),
        (|d| d.backing = true, "add format=qcow2"),
        (|d| (d.backing, d.format) = (true, Some(DiskFormat::Raw)), "add format=qcow2"),
        (
            |d| (d.engine, d.format) = (DiskEngine::IoUring, Some(DiskFormat::Qcow2)),
            "engine=threads",
        ),
        (|d| (d.overlay, d.overlay_dir) = (true, Some("".into())), "overlay_dir of disk d"),
    ] {
        let told = refusal(change).unwrap_err();
        assert!(told.contains(hint) && told.contains('d'), "{told}");
    }
    refusal(|d| (d.overlay, d.overlay_dir) = (true, Some("/x".into()))).unwrap();
    refusal(|d| (d.backing, d.format) = (true, Some(DiskFormat::Qcow2))).unwrap();
}
