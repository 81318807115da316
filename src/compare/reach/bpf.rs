//! What programs of seccomp let pass, whatever the arguments: a classic BPF program is run with the number of
//! the call known and all else of it not, and where that decides, both ways are gone.
//!
//! (`linux/filter.h`, `linux/bpf_common.h`, `linux/seccomp.h`; Documentation/userspace-api/seccomp_filter.rst.)
//! A program comes from whoever runs in a container: it is not believed to be sound, nor to be short.

use std::collections::BTreeSet;

/// `AUDIT_ARCH_X86_64` (`linux/audit.h`).
const X86_64: u32 = 0xc000_003e;
/// Where a program finds number and machine of a call (`struct seccomp_data`).
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
/// The size of that.
const DATA: u32 = 64;
/// `SECCOMP_RET_ACTION_FULL`, and the two actions by which a call is made.
const ACTION: u32 = 0xffff_0000;
const PASS: [u32; 2] = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG];
/// States of a program that are looked at for one call: the longest of the field has a few hundred.
const MOST: usize = 20_000;

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many are skipped when a comparison holds.
    pub jt: u8,
    /// And when it does not.
    pub jf: u8,
    /// Its constant.
    pub k: u32,
}

impl From<&libc::sock_filter> for Instruction {
    fn from(raw: &libc::sock_filter) -> Self {
        Self { code: raw.code, jt: raw.jt, jf: raw.jf, k: raw.k }
    }
}

/// Those of the calls with these `numbers` that each of `programs` may let pass.
pub fn passed(
    programs: &[Vec<Instruction>],
    numbers: impl Iterator<Item = u32>,
) -> impl Iterator<Item = u32> {
    numbers.filter(|number| programs.iter().all(|program| may_pass(program, *number)))
}

/// Where a program is: what comes next, its accumulator and its index register; nothing where they are not
/// known.
type State = (usize, Option<u32>, Option<u32>);

/// Whether a program lets call `number` pass with some arguments. Of one that is not to be seen through it is
/// taken that it does.
fn may_pass(program: &[Instruction], number: u32) -> bool {
    let (mut seen, mut open): (BTreeSet<State>, Vec<State>) =
        (BTreeSet::new(), vec![(0, Some(0), Some(0))]);
    while let Some(state) = open.pop() {
        if !seen.insert(state) {
            continue;
        }
        if seen.len() > MOST {
            return true;
        }
        match step(program, number, state) {
            Next::Ends(Some(value)) if !PASS.contains(&(value & ACTION)) => {}
            Next::Ends(_) => return true,
            Next::Goes(states) => open.extend(states.into_iter().flatten()),
        }
    }
    false
}

/// What an instruction leads to.
enum Next {
    /// The program's end with this value.
    Ends(Option<u32>),
    /// One state, or either of two.
    Goes([Option<State>; 2]),
}

fn step(program: &[Instruction], number: u32, (at, a, x): State) -> Next {
    // The kernel takes no program that runs past its end, or has instructions that are not known here.
    let Some(&Instruction { code, jt, jf, k }) = program.get(at) else { return Next::Ends(None) };
    let next = at.saturating_add(1);
    let to = |a, x| Next::Goes([Some((next, a, x)), None]);
    // Bit 3 says whether the operand is the constant or the index register.
    let operand = if code & 0x08 == 0 { Some(k) } else { x };
    let both = |f: fn(u32, u32) -> u32| to(a.zip(operand).map(|(a, b)| f(a, b)), x);
    let jump = |f: fn(u32, u32) -> bool| {
        let skip = |n: u8| Some((next.saturating_add(n.into()), a, x));
        Next::Goes(match a.zip(operand).map(|(a, b)| f(a, b)) {
            Some(true) => [skip(jt), None],
            Some(false) => [skip(jf), None],
            None => [skip(jt), skip(jf)],
        })
    };
    match code {
        // LD W ABS, LD IMM, LD W LEN, LD MEM.
        0x20 => match k {
            NUMBER => to(Some(number), x),
            MACHINE => to(Some(X86_64), x),
            _ => to(None, x),
        },
        0x00 => to(Some(k), x),
        0x80 => to(Some(DATA), x),
        0x60 => to(None, x),
        // LDX IMM, LDX W LEN, LDX MEM.
        0x01 => to(a, Some(k)),
        0x81 => to(a, Some(DATA)),
        0x61 => to(a, None),
        // ST, STX: what is stored is not kept, and not known when it is loaded.
        0x02 | 0x03 => to(a, x),
        // ALU, with the constant or with the register.
        0x04 | 0x0c => both(u32::wrapping_add),
        0x14 | 0x1c => both(u32::wrapping_sub),
        0x24 | 0x2c => both(u32::wrapping_mul),
        // By zero, the kernel ends the program with 0, which is no pass.
        0x34 | 0x3c => match operand {
            Some(0) => Next::Ends(Some(0)),
            _ => both(|a, b| a.checked_div(b).unwrap_or(0)),
        },
        0x44 | 0x4c => both(|a, b| a | b),
        0x54 | 0x5c => both(|a, b| a & b),
        0x64 | 0x6c => both(u32::wrapping_shl),
        0x74 | 0x7c => both(u32::wrapping_shr),
        0x84 => to(a.map(u32::wrapping_neg), x),
        0xa4 | 0xac => both(|a, b| a ^ b),
        // JA, JEQ, JGT, JGE, JSET.
        0x05 => Next::Goes([Some((next.saturating_add(k as usize), a, x)), None]),
        0x15 | 0x1d => jump(|a, b| a == b),
        0x25 | 0x2d => jump(|a, b| a > b),
        0x35 | 0x3d => jump(|a, b| a >= b),
        0x45 | 0x4d => jump(|a, b| a & b != 0),
        // RET, of the constant or of the accumulator.
        0x06 => Next::Ends(Some(k)),
        0x16 => Next::Ends(a),
        // TAX, TXA.
        0x07 => to(a, a),
        0x87 => to(x, x),
        _ => Next::Ends(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const ERRNO: u32 = 0x0005_0001;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<Instruction> {
        let all = instructions.iter();
        all.map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect()
    }

    fn calls(programs: &[Vec<Instruction>]) -> Vec<u32> {
        passed(programs, 0..10).collect()
    }

    /// As libseccomp makes them: the machine, then the numbers; 3 only with a certain argument, 4 never, all above
    /// 5 refused.
    fn usual() -> Vec<Instruction> {
        program(&[
            (0x20, 0, 0, MACHINE),
            (0x15, 0, 8, X86_64),
            (0x20, 0, 0, NUMBER),
            (0x35, 6, 0, 6),
            (0x15, 2, 0, 3),
            (0x15, 4, 0, 4),
            (0x06, 0, 0, ALLOW),
            (0x20, 0, 0, 16),
            (0x15, 0, 1, 0x20000),
            (0x06, 0, 0, ALLOW),
            (0x06, 0, 0, ERRNO),
        ])
    }

    #[test]
    fn a_call_that_passes_with_some_arguments_counts_and_one_that_never_does_not() {
        assert_eq!(calls(&[usual()]), [0, 1, 2, 3, 5]);
        // Of another machine's program nothing passes here.
        let mut other = usual();
        other[1].k = 0x4000_0003;
        assert!(calls(&[other]).is_empty());
    }

    #[test]
    fn what_passes_has_to_pass_all_programs() {
        let not_one = program(&[
            (0x20, 0, 0, NUMBER),
            (0x15, 1, 0, 1),
            (0x06, 0, 0, libc::SECCOMP_RET_LOG),
            (0x06, 0, 0, 0),
        ]);
        assert_eq!(calls(&[usual(), not_one.clone()]), [0, 2, 3, 5]);
        assert_eq!(calls(&[not_one, usual()]), [0, 2, 3, 5]);
        assert_eq!(calls(&[]).len(), 10);
    }

    #[test]
    fn what_is_computed_is_known_as_far_as_its_operands_are() {
        // ((number << 1) | 1) - 4 == 5, by the register; then the accumulator is what is returned.
        let computed = program(&[
            (0x01, 0, 0, 1),
            (0x20, 0, 0, NUMBER),
            (0x6c, 0, 0, 0),
            (0x4c, 0, 0, 0),
            (0x14, 0, 0, 4),
            (0x15, 0, 2, 5),
            (0x00, 0, 0, ALLOW),
            (0x16, 0, 0, 0),
            (0x06, 0, 0, ERRNO),
        ]);
        assert_eq!(calls(&[computed]), [4]);
        // Neither what memory had nor what an argument is.
        for load in [(0x60, 0, 0, 0), (0x20, 0, 0, 24)] {
            let unknown = program(&[load, (0x07, 0, 0, 0), (0x1d, 0, 0, 0), (0x16, 0, 0, 0)]);
            assert_eq!(calls(&[unknown]).len(), 10);
        }
        let divided = program(&[(0x34, 0, 0, 0), (0x06, 0, 0, ALLOW)]);
        assert!(calls(&[divided]).is_empty());
    }

    #[test]
    fn a_program_that_is_not_to_be_seen_through_is_no_wall_and_takes_no_time() {
        // No end, no instruction that is known, a jump out of all bounds.
        for odd in [vec![], vec![(0xffff, 0, 0, 0)], vec![(0x05, 0, 0, u32::MAX)]] {
            assert_eq!(calls(&[program(&odd)]).len(), 10);
        }
        // Two ways at each argument, each with another sum: 2^1000 states.
        let mut maze = Vec::new();
        for n in 0..1000 {
            maze.extend([(0x07, 0, 0, 0), (0x20, 0, 0, 16), (0x15, 0, 1, 7)]);
            maze.extend([(0x87, 0, 0, 0), (0x04, 0, 0, 1 << (n % 32)), (0x87, 0, 0, 0)]);
        }
        maze.push((0x06, 0, 0, ERRNO));
        let begun = std::time::Instant::now();
        let _ = calls(&[program(&maze)]);
        assert!(begun.elapsed() < std::time::Duration::from_secs(60));
    }
}
