use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use super::*;
use crate::boot::synth::Spec;

/// A cache in a directory of its own, and a source file for it.
struct Fixture {
    home: tempfile::TempDir,
    cache: Cache,
    source: Stamp,
    key: Key,
    image: Image,
    elf: Elf,
}

impl Fixture {
    fn new() -> Fixture {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("vmlinuz");
        fs::write(&path, "packed").unwrap();
        let mut source = Stamp::of(&fs::metadata(&path).unwrap());
        source.settle();
        let image = Image::Bytes(Spec::default().build());
        let elf = Elf::parse(&image).unwrap();
        let cache = Cache::at(home.path().join("deep/husk"));
        Fixture { cache, source, key: Key::of(b"packed"), image, elf, home }
    }

    fn store(&self) -> Option<(Image, Elf)> {
        self.cache.store(&self.key, &self.source, &self.elf, &self.image)
    }

    fn dir(&self) -> &Path {
        self.cache.dir.as_deref().unwrap()
    }

    fn entry(&self) -> PathBuf {
        entry_path(self.dir(), &self.key)
    }

    /// Puts something else where the entry is.
    fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.entry()).unwrap();
        change(&mut bytes);
        fs::remove_file(self.entry()).unwrap();
        fs::write(self.entry(), bytes).unwrap();
    }

    fn is_found(&self) -> bool {
        let by_stat = self.cache.find_unread(&self.source);
        let by_key = self.cache.find(&self.key, &self.source);
        assert_eq!(by_stat.is_some(), by_key.is_some());
        by_key.is_some()
    }
}

#[test]
fn what_is_stored_is_found_by_stat_and_by_key() {
    let f = Fixture::new();
    assert!(!f.is_found());
    let (image, elf) = f.store().unwrap();
    assert!(matches!(image, Image::File { immutable: true, .. }));
    assert_eq!((elf.entry, elf.pvh_entry), (f.elf.entry, f.elf.pvh_entry));
    assert_eq!(f.cache.find_unread(&f.source).unwrap().1, elf);
    assert_eq!(f.cache.find(&f.key, &f.source).unwrap().1, elf);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(f.dir()), 0o700);
    assert_eq!(mode(&f.entry()), 0o400);
    let names: Vec<_> = fs::read_dir(f.dir().join("kernels")).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing temporary stays");
}

#[test]
fn any_change_of_the_source_is_seen() {
    let f = Fixture::new();
    f.store().unwrap();
    let path = f.home.path().join("vmlinuz");
    thread::sleep(Duration::from_millis(20));
    fs::write(&path, "pAcked").unwrap();
    let changed = Stamp::of(&fs::metadata(&path).unwrap());
    assert!(!changed.is_same(&f.source));
    assert!(f.cache.find_unread(&changed).is_none());
}

#[test]
fn a_source_that_changed_just_now_is_not_recorded() {
    let mut f = Fixture::new();
    f.source.unsettle();
    f.store().unwrap();
    assert!(f.cache.find_unread(&f.source).is_none());
    assert!(f.cache.find(&f.key, &f.source).is_some());
    assert!(!Stamp::of(&fs::metadata(f.entry()).unwrap()).is_settled());
}

#[test]
fn a_damaged_entry_is_thrown_away() {
    let changes: [fn(&mut Vec<u8>); 8] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.clear(),
        |bytes| bytes[0x1234] ^= 1,
        |bytes| bytes[0] = 0,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.fill(0),
        |bytes| bytes.push(0),
    ];
    for change in changes {
        let f = Fixture::new();
        f.store().unwrap();
        f.damage(change);
        assert!(!f.is_found());
        assert!(!f.entry().exists());
        f.store().unwrap();
        assert!(f.is_found());
    }
}

#[test]
fn an_entry_changed_in_place_is_read_again() {
    let f = Fixture::new();
    f.store().unwrap();
    thread::sleep(Duration::from_millis(20));
    fs::set_permissions(f.entry(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(f.is_found(), "nothing but the time of its change is different");
    thread::sleep(Duration::from_millis(20));
    let file = File::options().write(true).open(f.entry()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0x1500).unwrap();
    assert!(f.cache.find_unread(&f.source).is_none());
}

#[test]
fn an_entry_of_another_kernel_is_not_taken_for_it() {
    let f = Fixture::new();
    f.store().unwrap();
    let other = Key::of(b"other");
    fs::copy(f.entry(), entry_path(f.dir(), &other)).unwrap();
    assert!(f.cache.find(&other, &f.source).is_none());
}

#[test]
fn a_record_of_another_boot_of_the_host_is_checked_and_renewed() {
    let f = Fixture::new();
    f.store().unwrap();
    let record = record_path(f.dir(), &f.source);
    let text = fs::read_to_string(&record).unwrap();
    let boot = text.lines().last().unwrap();
    let old = text.replace(boot, "00000000-0000-0000-0000-000000000000");
    fs::remove_file(&record).unwrap();
    fs::write(&record, &old).unwrap();
    assert!(f.cache.find_unread(&f.source).is_some());
    assert_eq!(fs::read_to_string(&record).unwrap(), text);
    // With the record of another boot, what the disk lost in between is seen.
    fs::remove_file(&record).unwrap();
    fs::write(&record, &old).unwrap();
    f.damage(|bytes| bytes[0x1000..0x3000].fill(0));
    assert!(f.cache.find_unread(&f.source).is_none());
}

#[test]
fn records_that_are_nonsense_are_as_good_as_none() {
    let f = Fixture::new();
    f.store().unwrap();
    let record = record_path(f.dir(), &f.source);
    let text = fs::read_to_string(&record).unwrap();
    let long = text.repeat(100);
    for nonsense in ["", "husk-index 1\n", &text[..text.len() / 2], "\u{1F980}", &long] {
        fs::remove_file(&record).unwrap();
        fs::write(&record, nonsense).unwrap();
        let found = f.cache.find_unread(&f.source);
        assert!(found.is_none_or(|(_, elf)| elf.entry == f.elf.entry));
    }
    assert_eq!(Key::parse(&format!("../../{:058}", 0)), None);
}

#[test]
fn a_cache_that_cannot_be_written_only_costs_time() {
    let f = Fixture::new();
    for dir in [f.home.path().join("vmlinuz/husk"), PathBuf::from("/proc/husk-no")] {
        let cache = Cache::at(dir);
        assert!(cache.store(&f.key, &f.source, &f.elf, &f.image).is_none());
        assert!(cache.warned.load(Ordering::Relaxed));
        assert!(cache.find_unread(&f.source).is_none());
    }
    assert!(Cache::off().store(&f.key, &f.source, &f.elf, &f.image).is_none());
}

#[test]
fn a_directory_others_can_write_to_is_not_used() {
    let f = Fixture::new();
    f.store().unwrap();
    fs::set_permissions(f.dir().join("kernels"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!f.is_found());
    assert!(f.store().is_none());
}

#[test]
fn a_failed_write_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.elf");
    let full = write_renamed(&path, MODE, |file| {
        file.write_all(b"half")?;
        Err(io::ErrorKind::StorageFull.into())
    });
    assert!(full.is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn many_may_store_and_find_at_once() {
    let f = Fixture::new();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = Cache::at(f.dir());
                for _ in 0..20 {
                    let stored = cache.store(&f.key, &f.source, &f.elf, &f.image);
                    assert!(stored.is_some());
                    assert!(cache.find_unread(&f.source).is_some());
                    assert!(cache.find(&f.key, &f.source).is_some());
                }
            });
        }
    });
}

#[test]
fn the_longest_unused_go_first() {
    let dir = tempfile::tempdir().unwrap();
    for (name, age) in [("old", 5000), ("new", 10), ("older", 9000), (".left.tmp", 7200)] {
        let file = File::create(dir.path().join(name)).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
    }
    let spare = dir.path().join("older");
    prune(dir.path(), Room { files: 2, bytes: u64::MAX }, Some(&spare));
    assert_eq!(names_in(dir.path()), ["new", "older"]);
}

fn names_in(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn no_more_bytes_are_kept_than_there_is_room_for_but_what_was_just_stored() {
    let dir = tempfile::tempdir().unwrap();
    for (name, age, len) in [("a", 10, 400), ("b", 20, 400), ("c", 30, 400), ("d", 40, 1)] {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(len).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
    }
    let room = |bytes| Room { files: 16, bytes };
    prune(dir.path(), room(1201), None);
    assert_eq!(names_in(dir.path()), ["a", "b", "c", "d"]);
    // What is stored counts first, however old its times say it is.
    prune(dir.path(), room(800), Some(&dir.path().join("c")));
    assert_eq!(names_in(dir.path()), ["a", "c"]);
    prune(dir.path(), room(1), Some(&dir.path().join("c")));
    assert_eq!(names_in(dir.path()), ["c"]);
}

#[test]
fn the_directory_is_where_xdg_says() {
    let dir = |cache: &str, home: &str| {
        let some = |value: &str| (!value.is_empty()).then(|| OsString::from(value));
        Cache::from_variables(some(cache), some(home)).dir
    };
    assert_eq!(dir("/c", "/h"), Some("/c/husk".into()));
    assert_eq!(dir("", "/h"), Some("/h/.cache/husk".into()));
    assert_eq!(dir("relative", "/h"), Some("/h/.cache/husk".into()));
    assert_eq!(dir("", "relative"), None);
    assert_eq!(dir("", ""), None);
}
