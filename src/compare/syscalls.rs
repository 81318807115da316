//! How many different system calls a VMM makes in one run, counted by strace in a run of its own: what
//! a guest that had taken over its VMM could do, if nothing else held it, is bounded by a filter of
//! these.

use super::launch::{Instance, LIMIT};
use super::program::find;
use super::workload::Job;
use super::{CompareError, Field, cancelled};

/// Counts those of contestant `n`; `None`, with a note, where that cannot be done.
pub fn count(
    field: &Field<'_>,
    n: usize,
    notes: &mut Vec<String>,
) -> Result<Option<usize>, CompareError> {
    let Some(strace) = find("strace") else {
        let note = "system calls: not measured, there is no strace (`apt-get install strace`)";
        if !notes.iter().any(|said| said == note) {
            notes.push(note.to_owned());
        }
        return Ok(None);
    };
    let (mut call, id) = field.call(n, Job::Work)?;
    let file = field.lab.path(&format!("strace-{id}"));
    let mut command = vec![strace.into(), "-f".into(), "-qq".into(), "-c".into(), "-o".into()];
    command.extend([file.clone().into(), "--".into()]);
    command.append(&mut call.command);
    call.command = command;
    let ended = Instance::start(&call).and_then(|mut i| i.until_end(LIMIT, field.cancel));
    if let Err(failure) = ended {
        let why = cancelled(failure)?;
        notes.push(format!("{}: system calls: not measured, under strace {why}", field.name(n)));
        return Ok(None);
    }
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    Ok(Some(distinct(&text)).filter(|count| *count > 0))
}

/// The number of lines between the two rules of the table that `strace -c` writes.
fn distinct(table: &str) -> usize {
    let rule = |line: &&str| line.starts_with("------");
    let body = table.lines().skip_while(|line| !rule(line)).skip(1);
    body.take_while(|line| !rule(line)).filter(|line| !line.trim().is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_table_are_counted() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     \x20 0.00    0.000000           0         1           read\n\
                     \x20 0.00    0.000000           0         1         1 access\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.000000           0         2         1 total\n";
        assert_eq!(distinct(table), 2);
        assert_eq!(distinct(""), 0);
        assert_eq!(distinct("strace: no such process"), 0);
    }
}
