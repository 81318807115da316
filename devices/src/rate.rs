//! Token buckets, in whole numbers: what a device may do in a time.
//!
//! A bucket holds at most `size` tokens and gains `rate` of them a second, evenly. It begins full, so
//! that `size` is the burst that passes at once, and `rate` what passes in the long run. Time is
//! given by the caller: nothing here looks at a clock, sleeps or allocates. A [`Budget`] is a bucket of
//! bytes and one of requests.
//!
//! The level is kept in billionths of a token, which is what `rate` tokens a second make in a
//! nanosecond: no division, hence no rounding, however often it is asked.
//!
//! Invariant: `level <= size`. It is below zero after a request larger than the bucket, or one that
//! could only be counted afterwards ([`Bucket::spend`]); that debt is paid before anything passes.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Billionths of a token in a token.
const UNIT: i128 = 1_000_000_000;

/// Tokens that come back with time.
#[derive(Debug, Clone)]
pub struct Bucket {
    size: u64,
    rate: u64,
    /// In billionths of a token, at the time `filled`.
    level: i128,
    filled: Option<Instant>,
}

impl Bucket {
    /// A full bucket of `size` tokens that gains `rate` a second. Neither may be 0; each counts as 1
    /// then, for nothing would ever pass.
    pub fn new(size: u64, rate: u64) -> Bucket {
        let (size, rate) = (size.max(1), rate.max(1));
        Bucket { size, rate, level: i128::from(size) * UNIT, filled: None }
    }

    /// Takes `n` tokens at the time `now`. More than the bucket holds are taken when it is full and
    /// owed then. 0 passes as soon as nothing is owed.
    ///
    /// # Errors
    /// How long it takes until they are there; nothing has been taken.
    pub fn take(&mut self, n: u64, now: Instant) -> Result<(), Duration> {
        self.wait(n, now).map_or(Ok(()), Err)?;
        self.level -= i128::from(n) * UNIT;
        Ok(())
    }

    /// How long it takes until `n` tokens can be taken, if they cannot be at once.
    fn wait(&mut self, n: u64, now: Instant) -> Option<Duration> {
        self.fill(now);
        let lacking = i128::from(n.min(self.size)) * UNIT - self.level;
        (lacking > 0).then(|| self.time_for(lacking))
    }

    /// Takes `n` tokens for what has been done already, if need be into debt.
    pub fn spend(&mut self, n: u64, now: Instant) {
        self.fill(now);
        self.level = self.level.saturating_sub(i128::from(n) * UNIT);
    }

    /// Gives back `n` tokens that were taken for nothing.
    pub fn give_back(&mut self, n: u64) {
        self.add(i128::from(n) * UNIT);
    }

    /// What has come since the last time. A clock that went backwards brings nothing.
    fn fill(&mut self, now: Instant) {
        let past = self.filled.replace(self.filled.map_or(now, |then| then.max(now)));
        let elapsed = past.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        // At most 2^94 nanoseconds; a year and the largest rate make 2^119.
        let nanos = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        self.add(nanos.saturating_mul(i128::from(self.rate)));
    }

    fn add(&mut self, amount: i128) {
        self.level = self.level.saturating_add(amount).min(i128::from(self.size) * UNIT);
    }

    /// How long it takes to gain `lacking` billionths, rounded up to a nanosecond.
    fn time_for(&self, lacking: i128) -> Duration {
        let rate = i128::from(self.rate);
        let nanos = (lacking + rate - 1) / rate;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// How many bytes and how many requests pass in a time: either, both or neither is limited.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// Of which a token is a byte.
    pub bytes: Option<Bucket>,
    /// Of which a token is a request, or a frame.
    pub requests: Option<Bucket>,
}

impl Budget {
    /// At most so many bytes and requests a second, on average, and a tenth of that at once.
    pub fn per_second(bytes: Option<NonZeroU64>, requests: Option<NonZeroU64>) -> Budget {
        let bucket = |rate: NonZeroU64| Bucket::new(rate.get() / 10, rate.get());
        Budget { bytes: bytes.map(bucket), requests: requests.map(bucket) }
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.requests.is_some()
    }

    /// Takes a request of `bytes` bytes at the time `now`, from both buckets or from neither.
    ///
    /// # Errors
    /// How long it takes until both have it.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let wanted = [(&mut self.bytes, bytes), (&mut self.requests, 1)];
        let waits = wanted.into_iter().filter_map(|(bucket, n)| bucket.as_mut()?.wait(n, now));
        waits.max().map_or(Ok(()), Err)?;
        self.spend(bytes, now);
        Ok(())
    }

    /// Takes it for what has been done already, if need be into debt.
    pub fn spend(&mut self, bytes: u64, now: Instant) {
        for (bucket, n) in [(&mut self.bytes, bytes), (&mut self.requests, 1)] {
            if let Some(bucket) = bucket {
                bucket.spend(n, now);
            }
        }
    }

    /// Gives back what was taken for a request that did not go after all.
    pub fn give_back(&mut self, bytes: u64) {
        for (bucket, n) in [(&mut self.bytes, bytes), (&mut self.requests, 1)] {
            if let Some(bucket) = bucket {
                bucket.give_back(n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_full_bucket_passes_its_size_at_once_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, 10);
        assert_eq!(bucket.take(60, start), Ok(()));
        assert_eq!(bucket.take(40, start), Ok(()));
        assert_eq!(bucket.take(1, start), Err(SECOND / 10));
        assert_eq!(bucket.take(1, start + SECOND / 10), Ok(()));
        assert_eq!(bucket.take(10, start + SECOND / 10), Err(SECOND));
        // It never holds more than its size, however long nobody takes.
        assert_eq!(bucket.take(100, start + 1000 * SECOND), Ok(()));
        assert_eq!(bucket.take(1, start + 1000 * SECOND), Err(SECOND / 10));
    }

    #[test]
    fn what_is_larger_than_the_bucket_passes_when_it_is_full_and_is_owed() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 10);
        assert_eq!(bucket.take(1, start), Ok(()));
        assert_eq!(bucket.take(30, start), Err(SECOND / 10));
        assert_eq!(bucket.take(30, start + SECOND / 10), Ok(()));
        // 20 are owed, and one more is wanted.
        let owed = SECOND * 21 / 10;
        assert_eq!(bucket.take(1, start + SECOND / 10), Err(owed));
        assert_eq!(bucket.take(0, start + SECOND / 10), Err(SECOND * 2));
        assert_eq!(bucket.take(1, start + SECOND / 10 + owed), Ok(()));
    }

    #[test]
    fn what_was_done_already_is_paid_for_later() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 10);
        assert_eq!(bucket.take(0, start), Ok(()));
        bucket.spend(15, start);
        assert_eq!(bucket.take(0, start), Err(SECOND / 2));
        bucket.give_back(5);
        assert_eq!(bucket.take(0, start), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_backwards_brings_nothing() {
        let start = Instant::now() + SECOND;
        let mut bucket = Bucket::new(10, 10);
        assert_eq!(bucket.take(10, start), Ok(()));
        assert_eq!(bucket.take(1, start - SECOND), Err(SECOND / 10));
        assert_eq!(bucket.take(1, start), Err(SECOND / 10));
    }

    #[test]
    fn both_buckets_of_a_budget_give_or_neither() {
        let start = Instant::now();
        let mut budget = Budget::per_second(NonZeroU64::new(1000), NonZeroU64::new(20));
        assert_eq!(budget.take(1100, start), Ok(()));
        // A second of bytes in debt, and one more; no request is lost by asking in vain.
        assert_eq!(budget.take(1, start), Err(SECOND + SECOND / 1000));
        assert_eq!(budget.take(0, start), Err(SECOND));
        assert_eq!(budget.take(0, start + SECOND), Ok(()));
        assert_eq!(budget.take(0, start + SECOND), Ok(()));
        // Now both lack, and the longer wait counts.
        assert_eq!(budget.take(10, start + SECOND), Err(SECOND / 20));
        assert_eq!(budget.take(80, start + SECOND), Err(SECOND * 8 / 100));
        budget.give_back(80);
        assert_eq!(budget.take(80, start + SECOND), Ok(()));
        budget.spend(200, start + SECOND);
        assert_eq!(budget.take(0, start + SECOND), Err(SECOND / 5));
        assert!(budget.is_limited() && !Budget::per_second(None, None).is_limited());
        assert_eq!(Budget::default().take(u64::MAX, start), Ok(()));
    }

    proptest! {
        /// No rounding: whoever asks often gets as much as whoever asks once, to the token.
        #[test]
        fn in_any_time_no_more_passes_than_the_size_and_the_rate_allow(
            size in 1u64..10_000,
            rate in 1u64..1_000_000_000_000,
            steps in prop::collection::vec((0u64..20_000, 0u64..3_000_000), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(size, rate);
            let (mut passed, mut elapsed) = (0u128, 0u64);
            for (n, pause) in steps {
                elapsed += pause;
                let now = start + Duration::from_nanos(elapsed);
                let n = n.min(size);
                match bucket.take(n, now) {
                    Ok(()) => passed += u128::from(n),
                    Err(wait) => {
                        // A nanosecond earlier it does not pass, and then it does.
                        prop_assert!(wait > Duration::ZERO);
                        let early = now + wait - Duration::from_nanos(1);
                        prop_assert!(bucket.clone().take(n, early).is_err());
                        prop_assert!(bucket.clone().take(n, now + wait).is_ok());
                    }
                }
                let allowed = u128::from(size) * 1_000_000_000
                    + u128::from(rate) * u128::from(elapsed);
                prop_assert!(passed * 1_000_000_000 <= allowed);
            }
        }

        #[test]
        fn nothing_overflows(
            size in any::<u64>(), rate in any::<u64>(), n in any::<u64>(), secs in 0u64..1 << 33,
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(size, rate);
            for _ in 0..4 {
                bucket.spend(n, start);
            }
            let _ = bucket.take(n, start);
            let _ = bucket.take(n, start + Duration::from_secs(secs));
            bucket.give_back(u64::MAX);
            prop_assert!(bucket.level <= i128::from(bucket.size) * UNIT);
        }
    }
}
