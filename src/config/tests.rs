use super::*;

fn disk(id: &str) -> DiskConfig {
    DiskConfig { id: id.to_owned(), path: "/x".into(), readonly: false }
}

fn net(id: &str) -> NetConfig {
    NetConfig { id: id.to_owned(), tap: Some("tap0".to_owned()), fd: None, mac: None }
}

#[test]
fn a_configuration_reads_back_as_it_was_written() {
    let mut config = VmConfig::new("/boot/vmlinuz");
    config.memory = MemoryConfig { size: Size::mib(1024), shared: true, hugepages: false };
    config.disks.push(disk("root"));
    config.nets.push(net("lan"));
    config.console = ConsoleConfig::File("/tmp/log".into());
    config.on_reboot = OnReboot::Exit;
    assert_eq!(VmConfig::from_json(&config.to_json()), Ok(config));
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
    for text in ["", "{", "[]", r#"{"kernel": 1}"#, r#"{"kernel": "k", "cpus": "two"}"#, r#"{}"#] {
        let error = VmConfig::from_json(text).unwrap_err();
        assert!(error.contains("line 1") || error.contains("EOF"), "{text}: {error}");
    }
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
    config.rng = false;
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn a_network_interface_has_one_host_side_and_a_usable_name_and_mac() {
    let with = |change: fn(&mut NetConfig)| {
        let mut config = VmConfig::new("k");
        config.nets = vec![net("n")];
        change(&mut config.nets[0]);
        config.validate()
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert!(with(|n| n.fd = Some(3)).is_err());
    assert!(with(|n| n.tap = None).is_err());
    assert!(with(|n| n.tap = Some("sixteen-bytes-xx".to_owned())).is_err());
    assert!(with(|n| n.tap = Some("a/b".to_owned())).is_err());
    for mac in
        ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "53:54:00:12:34:56", "zz:54:00:12:34:56"]
    {
        let mut config = VmConfig::new("k");
        config.nets = vec![net("n")];
        config.nets[0].mac = Some(mac.to_owned());
        assert_eq!(config.validate(), Err(ConfigError::Mac(mac.to_owned())));
    }
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
fn no_device_takes_the_name_of_the_entropy_source() {
    let mut config = VmConfig::new("k");
    config.disks = vec![disk("rng")];
    assert_eq!(config.validate(), Err(ConfigError::DuplicateId("rng".to_owned())));
    config.rng = false;
    assert_eq!(config.validate(), Ok(()));
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
    assert_eq!(VmConfig::from_json(&config.to_json()), Ok(config));
}

#[test]
fn a_balloon_leaves_the_guest_some_memory_and_needs_small_pages() {
    let mut config = VmConfig::new("k");
    config.balloon = Some(BalloonConfig { size: Size::mib(511) });
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(VmConfig::from_json(&config.to_json()), Ok(config.clone()));
    config.balloon = Some(BalloonConfig { size: Size::mib(512) });
    assert!(matches!(config.validate(), Err(ConfigError::Balloon { .. })));
    config.balloon = VmConfig::from_json(r#"{"kernel": "k", "balloon": {}}"#).unwrap().balloon;
    assert_eq!(config.validate(), Ok(()));
    config.memory.hugepages = true;
    assert!(matches!(config.validate(), Err(ConfigError::Balloon { .. })));
}
