use super::*;

#[test]
fn runs_end_where_the_file_changes() {
    let overlay = Overlay::create(Path::new("d"), 1 << 20, None).unwrap();
    assert_eq!(overlay.run(0, 1 << 20), (false, 1 << 20));
    overlay.mark(512 * 10, 512 * 200, 1 << 20);
    overlay.mark(512 * 300, 512 * 301 + 100, 1 << 20);
    assert_eq!(overlay.run(0, 1 << 20), (false, 5120));
    assert_eq!(overlay.run(5120, 1 << 20), (true, 512 * 190));
    assert_eq!(overlay.run(5120 + 100, 1 << 20), (true, 512 * 190 - 100));
    assert_eq!(overlay.run(512 * 200, 1000), (false, 1000));
    assert_eq!(overlay.run(512 * 200, 1 << 20), (false, 51200));
    assert_eq!(overlay.run(512 * 300, 1 << 20), (true, 512));
    assert_eq!(overlay.run(512 * 127, 1 << 20), (true, 512 * 73));
}

#[test]
fn the_last_sector_counts_when_the_disk_ends_in_it() {
    let overlay = Overlay::create(Path::new("d"), 1000, None).unwrap();
    overlay.mark(512, 700, 1000);
    assert_eq!(overlay.run(512, 512), (false, 512));
    overlay.mark(700, 1000, 1000);
    assert_eq!(overlay.run(512, 512), (true, 512));
    assert_eq!(overlay.layer().metadata().unwrap().len(), 1024);
}

#[test]
fn what_lies_behind_the_end_of_a_smaller_disk_does_not_come_back() {
    let overlay = Overlay::create(Path::new("d"), 1 << 20, None).unwrap();
    overlay.mark(0, 1 << 20, 1 << 20);
    let smaller = overlay.resized(1 << 20, 512 * 100).unwrap().unwrap();
    let larger = smaller.resized(512 * 100, 4 << 20).unwrap().unwrap();
    assert_eq!(larger.run(0, 4 << 20), (true, 512 * 100));
    assert_eq!(larger.run(512 * 100, 3 << 20), (false, 3 << 20));
    assert!(larger.resized(4 << 20, u64::MAX).unwrap().is_none());
}

#[test]
fn a_disk_that_is_too_large_is_named_with_its_size_and_a_bad_directory_by_its_name() {
    let error = Overlay::create(Path::new("d"), u64::MAX, Some(Path::new("/nowhere"))).unwrap_err();
    let told = error.to_string();
    assert!(told.contains(&u64::MAX.to_string()) && !told.contains("nowhere"), "{told}");
    let error = Overlay::create(Path::new("d"), 512, Some(Path::new("/nowhere"))).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("/nowhere") && told.contains("overlay_dir=DIR"), "{told}");
}
