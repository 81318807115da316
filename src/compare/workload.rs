//! What every contestant is to do, in the same words and with the same files.
//!
//! ```text
//! /bin/busybox   the host's, statically linked
//! /workload      a script: says MARK, works, ends
//! /python, /www… what else a workload takes
//! /idle          a script: says MARK and sleeps
//! /init          of VMs only: says INIT, runs one of the two, ends the machine
//! ```

use super::CompareError;
use crate::config::nearest;

/// The first line of a workload, which stops the clock of `t_first`.
pub const MARK: &str = "@work";
/// The first line of a guest's init.
pub const INIT: &str = "@init";
/// The script of [`Workload::Python`].
pub(super) const PYTHON: &str = include_str!("python/work.py");

/// What an instance is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// To do the workload and end.
    Work,
    /// To idle until it is killed.
    Idle,
}

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workload {
    /// Says its line and ends: all that is measured is the start and the end.
    #[default]
    True,
    /// A shell that counts to a thousand, starts ten programs, and reads and writes a pipe.
    Sh,
    /// The host's python3, which says its line, and brings two thousand rows into JSON and back.
    Python,
    /// A web server that is asked once, over the loopback interface; the line is what it answers.
    Http,
}

impl Workload {
    const ALL: [Workload; 4] = [Workload::True, Workload::Sh, Workload::Python, Workload::Http];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Workload::True => "true",
            Workload::Sh => "sh",
            Workload::Python => "python",
            Workload::Http => "http",
        }
    }

    /// The one called `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn named(name: &str) -> Result<Self, CompareError> {
        let names = || Self::ALL.iter().map(|workload| workload.name());
        Self::ALL.into_iter().find(|workload| workload.name() == name).ok_or_else(|| {
            CompareError::Unknown {
                what: "workload",
                name: name.to_owned(),
                meant: nearest(name, names()),
                known: names().collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// The script `/workload`, run with the root of the files as its directory.
    pub(super) fn script(self) -> String {
        match self {
            Workload::True => format!("echo {MARK}\n"),
            Workload::Sh => format!(
                "echo {MARK}\n\
                 i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done\n\
                 for n in 0 1 2 3 4 5 6 7 8 9; do ./bin/busybox true; done\n\
                 ./bin/busybox cat ./bin/busybox | ./bin/busybox wc -c\n"
            ),
            Workload::Python => "exec ./python/bin/python3 -I -S ./work.py\n".to_owned(),
            // A port of its own, for processes share the host's; and nobody says when the server listens.
            // The pause is short, for it is a step in what is measured, and lets the server run; the limit
            // is half a minute at least.
            Workload::Http => "port=$((20000 + $$ % 12000))\n\
                 ./bin/busybox httpd -f -p 127.0.0.1:$port -h ./www &\n\
                 tries=0\n\
                 until ./bin/busybox wget -q -O - http://127.0.0.1:$port/ 2>/dev/null; do\n\
                 tries=$((tries+1))\n\
                 [ $tries -lt 3000 ] || { kill $!; exit 1; }\n\
                 ./bin/busybox sleep 0.01; done\n\
                 kill $!\n"
                .to_owned(),
        }
    }

    /// What else it takes, as names from the root of the files on.
    pub(super) fn files(self) -> Vec<(&'static str, String)> {
        match self {
            Workload::True | Workload::Sh => Vec::new(),
            Workload::Python => vec![("work.py", PYTHON.to_owned())],
            Workload::Http => vec![("www/index.html", format!("{MARK}\n"))],
        }
    }
}

/// What an idle instance is in the end: the last words of its process' command line.
pub(super) const IDLING: [&str; 2] = ["sleep", "100000"];

/// The script `/idle`.
pub(super) fn idle_script() -> String {
    format!("echo {MARK}\nexec ./bin/busybox {}\n", IDLING.join(" "))
}

/// The script a job runs, relative to the root of the files.
pub(super) fn script_of(job: Job) -> &'static str {
    match job {
        Job::Work => "workload",
        Job::Idle => "idle",
    }
}

/// A guest's `/init` for `job`. How the machine is ended is the VMM's matter: the kernel gives
/// `END=` of its command line to init (`Documentation/admin-guide/kernel-parameters.rst`).
pub(super) fn init(workload: Workload, job: Job) -> String {
    // What a container's runtime does, and a plain process finds done.
    let lo = if workload == Workload::Http { "/bin/busybox ip link set lo up\n" } else { "" };
    format!(
        "#!/bin/busybox sh\necho {INIT}\ncd /\n{lo}/bin/busybox sh ./{}\nexec /bin/busybox ${{END:-poweroff}} -f\n",
        script_of(job)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_workload_is_answered_with_the_nearest() {
        assert_eq!(Workload::named("sh").unwrap(), Workload::Sh);
        let error = Workload::named("tru").unwrap_err().to_string();
        assert!(error.contains("did you mean true?"), "{error}");
        let error = Workload::named("postgres").unwrap_err().to_string();
        assert!(
            error.contains("there are true, sh, python, http") && !error.contains("mean"),
            "{error}"
        );
    }

    #[test]
    fn who_asks_a_server_that_never_answers_gives_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let busybox = dir.path().join("bin/busybox");
        let script = Workload::Http.script();
        let run = |asked: &str, tries: &str| {
            let text =
                format!("case $1 in wget) echo asked >>log; {asked};; httpd) exec sleep 60;; esac");
            // It is a script for the shell to read, for an executable that was just written may be busy.
            std::fs::write(&busybox, text).unwrap();
            let _ = std::fs::remove_file(dir.path().join("log"));
            let script = script.replace("./bin/busybox", "sh ./bin/busybox");
            let script = script.replace("-lt 3000", &format!("-lt {tries}"));
            let mut sh = std::process::Command::new("sh");
            let status = sh.arg("-c").arg(script).current_dir(dir.path()).status().unwrap();
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
            (status.success(), log.lines().count())
        };
        assert_eq!(run("exit 1", "3"), (false, 3));
        assert_eq!(run("exit 0", "3"), (true, 1));
    }

    #[test]
    fn the_marks_are_distinct_and_each_script_says_its_own_first() {
        assert_ne!(MARK, INIT);
        for workload in Workload::ALL {
            let mut said = vec![workload.script()];
            said.extend(workload.files().into_iter().map(|(_, text)| text));
            let marks = said.iter().map(|text| text.matches(MARK).count());
            assert_eq!(marks.sum::<usize>(), 1, "{workload:?}: {said:?}");
        }
        for (job, script) in [(Job::Idle, "./idle\n"), (Job::Work, "./workload\n")] {
            let (http, plain) = (init(Workload::Http, job), init(Workload::True, job));
            assert!(http.contains(script) && plain.contains(script));
            assert!(http.contains(" lo up\n") && !plain.contains(" lo "));
        }
    }
}
