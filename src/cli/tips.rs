//! What is said to a word on the command line that is no option. clap knows options and how to spell them; here
//! stands what people mean who come from other programs: a command without `--`, a kernel, docker's letters.

use std::path::Path;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use husk::config::quoted;

use super::Cli;

/// Subcommands that take a command behind `--`.
const WITH_COMMAND: [&str; 3] = ["run", "exec", "matrix"];
/// What other programs call what is an option here.
const MEANT: [(&str, &str); 14] = [
    ("-m", "memory"),
    ("-v", "volume"),
    ("-p", "publish"),
    ("-e", "env"),
    ("-u", "user"),
    ("-w", "workdir"),
    ("-d", "detach"),
    ("-k", "kernel"),
    ("-n", "name"),
    ("-c", "cpus"),
    ("-t", "grace"),
    ("-a", "all"),
    ("--smp", "cpus"),
    ("--network", "net"),
];
/// What they need an option for, and husk none.
const NOT_NEEDED: [(&str, &str); 5] = [
    ("--rm", "leave it out: nothing stays of a VM"),
    ("-i", INTERACTIVE),
    ("-t", INTERACTIVE),
    ("--interactive", INTERACTIVE),
    ("-it", INTERACTIVE),
];
const INTERACTIVE: &str =
    "leave it out: a command has husk's stdin, and on a terminal one of its own";
/// What a file for `--config` holds that has one value.
const IN_A_FILE: [&str; 12] = [
    "--kernel",
    "--initrd",
    "--cmdline",
    "--cpus",
    "--memory",
    "--rng",
    "--balloon",
    "--vsock",
    "--console",
    "--console-device",
    "--on-reboot",
    "--boot-protocol",
];
/// A longer command line is not repeated, in bytes.
const REPEATED_MAX: usize = 200;

/// Says in `error`, which came of the command line `words`, what may have been meant.
pub fn amend(error: &mut clap::Error, words: &[String]) {
    let (Some(ContextValue::String(word)), Some(subcommand)) =
        (error.get(ContextKind::InvalidArg), words.get(1))
    else {
        return;
    };
    let word = word.clone();
    if error.kind() == ErrorKind::ArgumentConflict {
        let prior = error.get(ContextKind::PriorArg);
        if matches!(prior, Some(ContextValue::String(prior)) if *prior == word) {
            amend_twice(error, subcommand, &word);
        }
        return;
    }
    if error.kind() != ErrorKind::UnknownArgument {
        return;
    }
    if word.starts_with('-') {
        amend_option(error, subcommand, &word);
        return;
    }
    let mut tips = Vec::new();
    if subcommand == "run" && may_be_a_kernel(&word) {
        tips.push(format!("if that is the kernel: husk run --kernel {}", quoted(&word)));
    }
    if WITH_COMMAND.contains(&subcommand.as_str()) {
        tips.extend(place_of(&word, words).and_then(|at| with_command(words, at)));
    }
    if !tips.is_empty() {
        let tips = tips.into_iter().map(Into::into).collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
}

/// `option` is there twice. With other programs the last one wins, and nobody sees that the first does nothing.
fn amend_twice(error: &mut clap::Error, subcommand: &str, option: &str) {
    let name = option.split(' ').next().unwrap_or(option);
    let mut tips = vec![format!("leave one {name} out: neither overrides the other")];
    if subcommand == "run" && IN_A_FILE.contains(&name) {
        let file = "options override a file: `husk run … --print-config >FILE`, then `husk run --config FILE …`";
        tips.push(file.to_owned());
    }
    let tips = tips.into_iter().map(Into::into).collect();
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
}

/// A file, or what kernels are called, mistyped.
fn may_be_a_kernel(word: &str) -> bool {
    let path = Path::new(word);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() || ["vmlinu", "bzImage"].iter().any(|begin| name.starts_with(begin))
}

/// `word` begins as an option does. That it could be a value of another is never what is meant.
fn amend_option(error: &mut clap::Error, subcommand: &str, word: &str) {
    error.remove(ContextKind::Suggested);
    let mut cli = Cli::command();
    cli.build();
    let Some(known) = cli.find_subcommand_mut(subcommand) else { return };
    let options: Vec<_> = known.get_opts().filter_map(|option| option.get_long()).collect();
    let flags = known.get_arguments().filter(|flag| !flag.get_action().takes_values());
    let all: Vec<_> = options.into_iter().chain(flags.filter_map(|flag| flag.get_long())).collect();
    let is_command = WITH_COMMAND.contains(&subcommand);
    let meant = MEANT.iter().find(|(other, long)| *other == word && all.contains(long));
    let begin = word.strip_prefix("--").filter(|begin| begin.len() > 1);
    let mut begun =
        all.iter().filter(|long| begin.is_some_and(|begin| long.starts_with(begin))).copied();
    let tip = NOT_NEEDED.iter().find(|(other, _)| *other == word && is_command);
    let similar = match (meant, begun.next(), begun.next()) {
        (Some((_, long)), ..) => format!("--{long}"),
        (None, Some(long), None) => format!("--{long}"),
        // clap's, if it has one.
        _ if tip.is_none() => return,
        _ => String::new(),
    };
    let usage = known.render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error.remove(ContextKind::SuggestedArg);
    match tip {
        Some((_, tip)) => {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![(*tip).into()]));
        }
        None => {
            error.insert(ContextKind::SuggestedArg, ContextValue::String(similar));
        }
    }
}

/// Which of `words` is the one that was not understood: it may be there before, as a value.
fn place_of(word: &str, words: &[String]) -> Option<usize> {
    let is_it = |at: &usize| {
        let begin = words.get(..=*at).unwrap_or_default();
        let error = <Cli as clap::Parser>::try_parse_from(begin).err();
        error.is_some_and(|error| error.kind() == ErrorKind::UnknownArgument)
    };
    (2..words.len()).filter(|at| words.get(*at).is_some_and(|it| it == word)).find(is_it)
}

/// The tip for a command that begins at `at`, unless there is one behind a `--`.
fn with_command(words: &[String], at: usize) -> Option<String> {
    let (options, command) = words.split_at_checked(at)?;
    if command.iter().any(|word| word == "--") {
        return None;
    }
    let join =
        |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let line = join(&[options.get(1..)?, &["--".to_owned()], command].concat());
    let line = match line.len() > REPEATED_MAX {
        true => format!("{} … -- {} …", options.get(1)?, quoted(command.first()?)),
        false => line,
    };
    Some(format!("a command comes after `--`: husk {line}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// What is said to this command line.
    fn said(line: &str) -> String {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let mut error = Cli::try_parse_from(&words).err().unwrap();
        amend(&mut error, &words);
        error.to_string()
    }

    #[test]
    fn a_command_without_two_dashes_is_told_of_them() {
        let tip = "tip: a command comes after `--`: ";
        for (line, meant) in [
            ("husk run true", "husk run -- true\n"),
            ("husk run --name true true -x", "husk run --name true -- true -x\n"),
            ("husk exec v1 uname -r", "husk exec v1 -- uname -r\n"),
            ("husk run a;b", "husk run -- 'a;b'\n"),
        ] {
            let said = said(line);
            assert!(said.contains(&format!("{tip}{meant}")), "{line}: {said}");
            assert!(!said.contains("kernel"), "{said}");
        }
        let long = said(&format!("husk run true {}", "x".repeat(REPEATED_MAX)));
        assert!(long.contains("husk run … -- true …\n"), "{long}");
        assert!(!said("husk run true -- false").contains(tip));
        assert!(!said("husk ps true").contains(tip));
    }

    #[test]
    fn a_file_may_be_the_kernel() {
        let said = said("husk run Cargo.toml");
        assert!(said.contains("if that is the kernel: husk run --kernel Cargo.toml"), "{said}");
        assert!(said.contains("husk run -- Cargo.toml"), "{said}");
    }

    #[test]
    fn an_option_that_is_there_twice_is_refused_with_both_ways_out() {
        for (line, option) in [
            ("husk run --memory 1G --memory 2G", "--memory"),
            ("husk run --kernel a --cpus 1 --kernel=a -- true", "--kernel"),
        ] {
            let said = said(line);
            assert!(said.contains(&format!("leave one {option} out")), "{said}");
            assert!(said.contains("husk run --config FILE"), "{said}");
        }
        // There is no file for others.
        for line in ["husk run --grace 1 --grace 2", "husk stop --grace 1 --grace 2 v"] {
            let said = said(line);
            assert!(said.contains("leave one --") && !said.contains("--config"), "{said}");
        }
        // Two that exclude each other are another matter.
        let other = said("husk run --detach --print-config");
        assert!(other.contains("cannot be used with") && !other.contains("leave one"), "{other}");
    }

    #[test]
    fn options_of_other_programs_lead_to_those_that_there_are() {
        for (line, meant) in [
            ("husk run --mem 1G -- true", "'--memory'"),
            ("husk run -m 1G", "'--memory'"),
            ("husk run -v a:b", "'--volume'"),
            ("husk run -p 80:80", "'--publish'"),
            ("husk run --memoryy 1G", "'--memory'"),
            ("husk run -it -- sh", "leave it out"),
            ("husk run --rm -- sh", "nothing stays of a VM"),
            ("husk exec v1 -i", "leave it out"),
            ("husk exec v1 --usr a", "'--user'"),
            ("husk stop -t 3 v1", "'--grace'"),
            ("husk ps -a", "'--all'"),
            ("husk run -x", "For more information"),
        ] {
            let said = said(line);
            assert!(said.contains(meant), "{line}: {said}");
            assert!(!said.contains("as a value") && !said.contains("pmem"), "{line}: {said}");
        }
    }
}
