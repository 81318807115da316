//! What /proc says of a running VMM.

use anyhow::{Context, Result};

/// utime + stime in clock ticks of 10 ms (`proc_pid_stat(5)`, fields 14 and 15).
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    Ok(stat_field(pid, 14)? + stat_field(pid, 15)?)
}

/// Minor page faults of all its threads so far (field 10): the guest's first touches of its memory
/// are among them, whether from a vCPU or from whoever loads the kernel.
pub fn page_faults(pid: u32) -> Result<u64> {
    stat_field(pid, 10)
}

/// A number of /proc/PID/stat by its place, counted from 1 as `proc_pid_stat(5)` does.
fn stat_field(pid: u32, field: usize) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, in parentheses, may hold anything.
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let number = rest.split_whitespace().nth(field - 3).and_then(|f| f.parse().ok());
    number.with_context(|| format!("field {field} of /proc/PID/stat"))
}

/// PSS in KiB outside and inside guest RAM: the mapping of 512 MiB, and whatever file is mapped
/// over parts of it.
pub fn memory(pid: u32) -> Result<(u64, u64)> {
    const GUEST: u64 = 512 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let range = |line: &str| -> Option<(u64, u64)> {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    let pieces: Vec<(u64, u64)> = maps.lines().filter_map(range).collect();
    let ram = find_ram(&pieces, GUEST).context("no guest memory found in /proc/PID/smaps")?;
    let (mut own, mut guest, mut inside) = (0, 0, false);
    for line in maps.lines() {
        if let Some((start, end)) = range(line) {
            inside = start >= ram.0 && end <= ram.1;
        } else if let Some(pss) = line.strip_prefix("Pss:") {
            let kib: u64 = pss.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            if inside { guest += kib } else { own += kib }
        }
    }
    Ok((own, guest))
}

/// Where the guest's RAM is among the mappings: pieces that touch and have its size together, or
/// else one that is larger because the kernel merged it with its neighbours.
fn find_ram(pieces: &[(u64, u64)], size: u64) -> Option<(u64, u64)> {
    for (n, &(start, _)) in pieces.iter().enumerate() {
        let mut end = start;
        for &(from, to) in pieces.iter().skip(n).take_while(|(from, _)| *from <= start + size) {
            if from != end {
                break;
            }
            end = to;
            if end - start == size {
                return Some((start, end));
            }
        }
    }
    pieces.iter().copied().filter(|(s, e)| e - s >= size).min_by_key(|(s, e)| e - s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_found_in_one_piece_in_many_or_merged_with_others() {
        assert_eq!(find_ram(&[(0, 5), (10, 110), (110, 112)], 100), Some((10, 110)));
        assert_eq!(find_ram(&[(0, 10), (10, 50), (50, 110), (110, 112)], 100), Some((10, 110)));
        assert_eq!(find_ram(&[(0, 5), (10, 130)], 100), Some((10, 130)));
        assert_eq!(find_ram(&[(0, 5)], 100), None);
    }
}
