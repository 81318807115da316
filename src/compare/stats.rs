//! Percentiles, and an order that is random and can be had again.

/// Some percentiles of a sample, by the nearest rank: each is a value that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// How many values there were.
    pub count: usize,
    /// Half of them are at most this.
    pub p50: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// 99 % are at most this; the largest of fewer than a hundred.
    pub p99: f64,
}

impl Percentiles {
    /// Of `values`, in any order; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let at = |percent| rank(&sorted, percent);
        Some(Self { count: sorted.len(), p50: at(50)?, p95: at(95)?, p99: at(99)? })
    }
}

/// `values` from the smallest to the largest.
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The smallest value that `percent` % of them do not exceed (nearest rank).
fn rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let nth = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(nth - 1).copied()
}

/// Random numbers for the order of runs: xorshift64*, good enough to shuffle and the same for the
/// same seed everywhere.
pub struct Order(u64);

impl Order {
    /// The order of `seed`.
    pub fn of(seed: u64) -> Self {
        // Neighbouring seeds have little in common after this; zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// Puts `items` into another order each time (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            let other = self.next() % (n as u64 + 1);
            items.swap(n, other as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let all = Percentiles::of(&values).unwrap();
        assert_eq!((all.count, all.p50, all.p95, all.p99), (100, 50.0, 95.0, 99.0));
        let three = Percentiles::of(&[9.0, 1.0, 5.0]).unwrap();
        assert_eq!((three.p50, three.p95, three.p99), (5.0, 9.0, 9.0));
        let one = Percentiles::of(&[7.0]).unwrap();
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
        assert_eq!(Percentiles::of(&[]), None);
    }

    #[test]
    fn an_order_loses_nothing_is_had_again_by_its_seed_and_is_another_by_another() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..50).collect();
            Order::of(seed).shuffle(&mut items);
            items
        };
        let mut all = shuffled(7);
        assert_eq!(all, shuffled(7));
        assert_ne!(all, shuffled(8));
        assert_ne!(shuffled(0), shuffled(2));
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn every_place_is_equally_likely() {
        let mut order = Order::of(1);
        let mut first = [0; 4];
        for _ in 0..4000 {
            let mut items = [0, 1, 2, 3];
            order.shuffle(&mut items);
            first[items[0]] += 1;
        }
        assert!(first.iter().all(|n| (850..1150).contains(n)), "{first:?}");
    }
}
