//! Medians, spreads, and a shuffle that needs no more randomness than the clock's.

/// The middle of `values`, with the smallest and the largest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of at least one value; all zero of none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |n: usize| sorted.get(n).copied().unwrap_or_default();
        Self { min: at(0), median: at(sorted.len() / 2), max: at(sorted.len().saturating_sub(1)) }
    }
}

/// Puts `items` into another order each time: position alone is worth 20 %.
pub fn shuffle<T>(items: &mut [T]) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut state = now.map_or(1, |d| d.as_nanos() as u64) | 1;
    for n in (1..items.len()).rev() {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(n, (state % (n as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let s = Summary::of(&[5.0, 1.0, 9.0]);
        assert_eq!((s.min, s.median, s.max), (1.0, 5.0, 9.0));
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut items: Vec<u32> = (0..100).collect();
        shuffle(&mut items);
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
