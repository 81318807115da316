//! `cargo xtask bench files`: a shared directory against the guest's own file systems, under what people do
//! in one: `git status` of a large tree, `find`, `grep`, a compiler.
//!
//! One guest for each cache policy has the same tree three times: shared, on a disk of its own and in its
//! memory. Ratios are taken within a guest; the same work outside, where the tree really is, stands beside them.
//! The programs are the host's, warmed up before anything is timed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::stats::{Summary, shuffle};
use super::{InnerArgs, Place, in_ram, inside};
use crate::limited::{self, Errors};
use crate::{apt, assets, cargo, host};

/// `cargo xtask bench files`
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each starts one guest for each cache policy
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,
    /// Files in the tree, twenty in a directory
    #[arg(long, default_value_t = 4000, value_name = "N")]
    files: usize,
    /// Cache policies of the share
    #[arg(long, value_delimiter = ',', default_value = "auto,always,never")]
    cache: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// What is run where Linux boots.
#[derive(Serialize, Deserialize)]
struct Plan {
    rounds: usize,
    files: usize,
    cache: Vec<String>,
    noxsave: bool,
    husk: PathBuf,
    assets: PathBuf,
}

/// Nothing that is started here takes longer.
const LIMIT: Duration = Duration::from_secs(1200);
/// Bytes of the disk on which the tree is.
const DISK: u64 = 512 << 20;
/// The programs, as the script calls them.
const TOOLS: [(&str, &str); 5] = [
    ("bash", "bash"),
    ("git", "git"),
    ("cc", "gcc"),
    ("find", "findutils"),
    ("mke2fs", "e2fsprogs"),
];

/// What is measured, in this order: its name in the script and in the table.
const WORK: [(&str, &str); 6] = [
    ("status", "git status, nothing known"),
    ("again", "git status, at once again"),
    ("later", "git status, 2 s later"),
    ("find", "find, 2 s later"),
    ("grep", "grep -r, a tenth, cold"),
    ("build", "cc of 6 files, 30 headers"),
];
/// The places of a guest's, the share first.
const PLACES: [&str; 3] = ["share", "disk", "memory"];

/// Makes everything, and measures where Linux boots.
pub fn main(args: &Args) -> Result<u8> {
    if let Some(other) = args.cache.iter().find(|c| !["auto", "always", "never"].contains(&&***c)) {
        bail!("--cache {other}: it is auto, always or never");
    }
    let husk = cargo::build_husk()?;
    apt::need(&TOOLS)?;
    let plan = Plan {
        rounds: args.rounds.max(1),
        files: args.files.max(20),
        cache: args.cache.clone(),
        noxsave: args.place.xsave,
        husk: husk.clone(),
        assets: assets::all()?,
    };
    inside(&husk, &args.place, "__bench-files", &plan, 6144)
}

/// Reads the plan and runs it.
pub fn inner(args: &InnerArgs) -> Result<u8> {
    in_ram(args, measure)
}

fn measure(plan: &Plan, ram: &Path) -> Result<()> {
    host::say("copying everything to memory");
    assets::copy_to_ram(&plan.assets, &[assets::VMLINUZ_CLOUD], ram)?;
    assets::link_modules(&plan.assets, ram)?;
    let husk = ram.join("husk");
    fs::copy(&plan.husk, &husk).with_context(|| format!("copying {}", husk.display()))?;
    let (tree, disk) = (ram.join("tree"), ram.join("disk"));
    host::say(format!("making a tree of {} files", plan.files));
    make_tree(&tree, plan.files)?;
    let script = ram.join("work.sh");
    fs::write(&script, script_text()).context("writing the script")?;
    run(Command::new("bash").arg(&script).arg("commit").arg(&tree))?;
    fs::File::create(&disk).and_then(|file| file.set_len(DISK)).context("making the disk")?;
    run(host::command("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).args([&tree, &disk]))?;
    let mut figures = Figures::default();
    figures.read("outside", &run(Command::new("bash").arg(&script).arg("outside").arg(&tree))?)?;
    for round in 0..plan.rounds {
        let mut order: Vec<&String> = plan.cache.iter().collect();
        shuffle(&mut order);
        for cache in order {
            let mut guest = Command::new(&husk);
            guest.args(["run", "--memory", "1G", "--kernel"]).arg(ram.join(assets::VMLINUZ_CLOUD));
            guest.arg("--modules").arg(ram.join(assets::MODULES_CLOUD));
            guest.arg("--disk").arg(format!("path={},overlay,id=tree", disk.display()));
            guest.arg("--volume").arg(format!("{}:/share,cache={cache}", tree.display()));
            guest.arg("--volume").arg(format!("{}:/bench:ro", ram.display()));
            if plan.noxsave {
                guest.args(["--append", "noxsave"]);
            }
            guest.args(["--", "bash", "/bench/work.sh", "inside"]);
            figures.read(cache, &run(&mut guest).with_context(|| format!("cache={cache}"))?)?;
        }
        host::say(format!("round {} of {}", round + 1, plan.rounds));
    }
    print!("{}", figures.table(&plan.cache));
    Ok(())
}

/// Runs it, and gives what it says.
fn run(command: &mut Command) -> Result<String> {
    let done = limited::run_with(command, LIMIT, false, Errors::Ours)?;
    match done.status() {
        0 => Ok(done.text()),
        status => bail!("{command:?} ended with {status}: {}", done.text()),
    }
}

/// Writes `files` files of some hundred bytes, twenty in a directory, and beside them what is compiled.
fn make_tree(tree: &Path, files: usize) -> Result<()> {
    let write = |path: PathBuf, text: String| {
        let parent = path.parent().unwrap_or(tree);
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    for n in 0..files {
        let (top, middle) = (n / 200, n / 20 % 10);
        let path = tree.join(format!("part{top:03}/section{middle}/a_file_of_the_tree_{n:06}.txt"));
        write(path, format!("line of file {n}\n").repeat(10 + n % 90))?;
    }
    for n in 0..30 {
        let text = format!("static inline int header_{n}(int x) {{ return x + {n}; }}\n");
        write(tree.join(format!("build/include/header_{n}.h")), text)?;
    }
    let includes: String = (0..30).map(|n| format!("#include \"header_{n}.h\"\n")).collect();
    for n in 0..6 {
        let text = format!("{includes}int unit_{n}(void) {{ return header_{n}({n}); }}\n");
        write(tree.join(format!("build/unit_{n}.c")), text)?;
    }
    write(tree.join(".gitignore"), "*.o\n".to_owned())
}

/// What is done in every place; bash's own clock, so that nothing is started for it.
fn script_text() -> String {
    const SCRIPT: &str = r#"
export LC_ALL=C HOME=/tmp GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory 'GIT_CONFIG_VALUE_0=*'
compile() {
    for unit in build/*.c; do cc -Ibuild/include -c -o "${unit%.c}.o" "$unit" || return 1; done
}
figure() {
    local name=$1 from=${EPOCHREALTIME/./}
    shift
    "$@" >/dev/null || exit 1
    echo "HUSK-FILES $place $name $((${EPOCHREALTIME/./} - from))"
}
work() {
    place=$1
    cd "$2" || exit 1
    # What is known of each file afterwards is right for this place.
    git status --short
    sync
    echo 3 >/proc/sys/vm/drop_caches
    # The programs, and nothing of the tree.
    (cd / && git --version && find /bin -maxdepth 0 && grep -c root /etc/passwd) >/dev/null
    echo 'int x;' | cc -xc -c -o /tmp/warm.o - || exit 1
    figure status git status --short
    figure again git status --short
    sleep 2
    figure later git status --short
    sleep 2
    figure find find . -name nothing
    figure grep grep -rc line part*0/
    figure build compile
    cd /
}
case $1 in
commit)
    cd "$2" && git init -q . && git add . && git -c user.name=husk -c user.email=husk@localhost \
        commit -qm tree && git gc -q || exit 1
    ;;
outside) work outside "$2" ;;
inside)
    mkdir -p /disk /memory
    mount -t ext4 /dev/vda /disk && mount -t tmpfs memory /memory && cp -a /disk/. /memory || exit 1
    work disk /disk
    work memory /memory
    work share /share
    ;;
esac
"#;
    SCRIPT.to_owned()
}

/// Microseconds by subject (a cache policy, or outside), place and work, one for each round.
#[derive(Default)]
struct Figures(BTreeMap<(String, String, String), Vec<f64>>);

impl Figures {
    /// Takes what the script said when it was run for `subject`.
    fn read(&mut self, subject: &str, said: &str) -> Result<()> {
        let mut count = 0;
        for line in said.lines() {
            let Some(words) = line.strip_prefix("HUSK-FILES ") else { continue };
            let words: Vec<&str> = words.split_whitespace().collect();
            let &[place, work, micros] = &words[..] else { bail!("{subject}: {line}") };
            let micros = micros.parse::<f64>().with_context(|| line.to_owned())?;
            let key = (subject.to_owned(), place.to_owned(), work.to_owned());
            self.0.entry(key).or_default().push(micros);
            count += 1;
        }
        if count == 0 {
            bail!("{subject} has measured nothing: {said}");
        }
        Ok(())
    }

    fn of(&self, subject: &str, place: &str, work: &str) -> &[f64] {
        let key = (subject.to_owned(), place.to_owned(), work.to_owned());
        self.0.get(&key).map(Vec::as_slice).unwrap_or_default()
    }

    /// The share's time by that of `place`, within each round.
    fn ratios(&self, subject: &str, place: &str, work: &str) -> Vec<f64> {
        let (share, other) = (self.of(subject, "share", work), self.of(subject, place, work));
        share.iter().zip(other).map(|(share, other)| share / other.max(1.0)).collect()
    }

    fn table(&self, subjects: &[String]) -> String {
        let mut text = format!(
            "\n{:<27} {:<7} {:>9} {:>9} {:>9} {:>9} {:>11} {:>13} {:>13}\n",
            "ms",
            "cache",
            PLACES[0],
            PLACES[1],
            PLACES[2],
            "outside",
            "share/disk",
            "(spread)",
            "share/memory"
        );
        for (work, name) in WORK {
            let mut heading = name;
            for subject in subjects {
                let [share, disk, memory] =
                    PLACES.map(|place| Summary::of(self.of(subject, place, work)).median / 1e3);
                let outside = Summary::of(self.of("outside", "outside", work)).median / 1e3;
                let by_disk = Summary::of(&self.ratios(subject, "disk", work));
                let by_memory = Summary::of(&self.ratios(subject, "memory", work)).median;
                let spread = format!("({:.2}–{:.2})", by_disk.min, by_disk.max);
                text += &format!(
                    "{heading:<27} {subject:<7} {share:>9.0} {disk:>9.0} {memory:>9.0} \
                     {outside:>9.0} {:>11.2} {spread:>13} {by_memory:>13.2}\n",
                    by_disk.median
                );
                heading = "";
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_guest_and_what_says_nothing_is_no_figure() {
        let mut figures = Figures::default();
        for factor in [1, 3] {
            let said = format!(
                "noise\nHUSK-FILES share status {}\nHUSK-FILES disk status {}\n",
                6000 * factor,
                2000 * factor
            );
            figures.read("auto", &said).unwrap();
        }
        assert_eq!(figures.ratios("auto", "disk", "status"), [3.0, 3.0]);
        let table = figures.table(&["auto".to_owned()]);
        assert!(table.contains("3.00   (3.00–3.00)"), "{table}");
        assert!(figures.read("auto", "git: not found\n").is_err());
        assert!(figures.read("auto", "HUSK-FILES share status soon\n").is_err());
    }
}
