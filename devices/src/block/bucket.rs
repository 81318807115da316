//! Token buckets: how many bytes and requests a second a disk may cost its host. Pure logic.
//!
//! A bucket holds at most a burst of tokens and is filled at a steady rate. A request passes when
//! the bucket is not in debt, and is paid in full then, into debt if need be: so a request that is
//! larger than the burst passes too, and what comes after it waits for it. Levels are counted in
//! billionths of a token, in which a nanosecond at any rate is a whole number; then, exactly,
//!
//! 1. `level <= burst`;
//! 2. as long as the bucket is never full, `level = burst + rate * time - paid`, at whatever
//!    moments it is looked at: nothing is lost or gained by looking often;
//! 3. hence `paid <= burst + rate * time + the last request`, over any time;
//! 4. who is told to wait `n` ns passes after `n` ns, and not after `n - 1`.

use std::num::NonZeroU64;

/// Nanoseconds of a second, and parts of a token.
const PARTS: i128 = 1_000_000_000;

/// A bucket of tokens.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Tokens a second, which are parts a nanosecond.
    rate: i128,
    /// Parts: at most 2^94.
    burst: i128,
    /// Parts; negative in debt.
    level: i128,
    /// When the level was that, in ns of the owner's clock.
    at: u64,
}

impl Bucket {
    /// A full bucket of `burst` tokens that is filled with `rate` tokens a second.
    pub fn new(rate: NonZeroU64, burst: u64) -> Bucket {
        let burst = i128::from(burst) * PARTS;
        Bucket { rate: i128::from(rate.get()), burst, level: burst, at: 0 }
    }

    /// Whether a request may pass at time `now` (ns). A time before the last one counts as that.
    ///
    /// # Errors
    /// Nanoseconds until it passes, if nobody else does before.
    pub fn ready(&mut self, now: u64) -> Result<(), u64> {
        let elapsed = i128::from(now.saturating_sub(self.at));
        // What saturates is far above any burst.
        let filled = elapsed.saturating_mul(self.rate);
        self.level = self.level.saturating_add(filled).min(self.burst);
        self.at = self.at.max(now);
        if self.level >= 0 {
            return Ok(());
        }
        // Rounded up: `rate` is not 0.
        let wait = (-self.level + self.rate - 1) / self.rate;
        Err(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Takes what a request costs that is [`Bucket::ready`].
    pub fn pay(&mut self, tokens: u64) {
        // Debts are bounded because only who is not in debt pays.
        self.level -= i128::from(tokens) * PARTS;
    }
}

/// What a disk may cost its host: either, both or neither.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// Bytes read and written.
    pub bytes: Option<Bucket>,
    /// Requests of any kind.
    pub requests: Option<Bucket>,
}

impl Budget {
    /// At most so many bytes and requests a second, on average, and a tenth of that at once.
    pub fn per_second(bytes: Option<NonZeroU64>, requests: Option<NonZeroU64>) -> Budget {
        let bucket = |rate: NonZeroU64| Bucket::new(rate, rate.get() / 10);
        Budget { bytes: bytes.map(bucket), requests: requests.map(bucket) }
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.requests.is_some()
    }

    /// Pays for a request of `bytes` bytes at time `now` (ns), from both buckets or from none.
    ///
    /// # Errors
    /// Nanoseconds to wait before asking again.
    pub fn spend(&mut self, now: u64, bytes: u64) -> Result<(), u64> {
        let waits = [self.bytes.as_mut(), self.requests.as_mut()];
        let wait = waits.into_iter().flatten().filter_map(|b| b.ready(now).err()).max();
        if let Some(wait) = wait {
            return Err(wait);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.pay(bytes);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.pay(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(rate: u64, burst: u64) -> Bucket {
        Bucket::new(NonZeroU64::new(rate).unwrap(), burst)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_it_is_the_rate() {
        let mut bucket = bucket(1000, 10);
        // The eleventh finds an empty bucket, which is no debt.
        for _ in 0..11 {
            bucket.ready(0).unwrap();
            bucket.pay(1);
        }
        assert_eq!(bucket.ready(0), Err(1_000_000));
        assert_eq!(bucket.ready(999_999), Err(1));
        assert_eq!(bucket.ready(1_000_000), Ok(()));
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_the_next_waits_for_it() {
        let mut bucket = bucket(100, 10);
        bucket.ready(0).unwrap();
        bucket.pay(1010);
        assert_eq!(bucket.ready(0), Err(10_000_000_000));
    }

    #[test]
    fn no_numbers_overflow_and_time_that_goes_back_gives_nothing() {
        let mut bucket = bucket(u64::MAX, u64::MAX);
        bucket.ready(u64::MAX).unwrap();
        bucket.pay(u64::MAX);
        bucket.pay(u64::MAX);
        assert_eq!(bucket.ready(0), Err(1_000_000_000));
        let mut slow = super::Bucket::new(NonZeroU64::MIN, 0);
        slow.pay(u64::MAX);
        assert_eq!(slow.ready(0), Err(u64::MAX));
    }

    #[test]
    fn both_buckets_pay_or_neither() {
        let mut budget = Budget::per_second(NonZeroU64::new(1000), NonZeroU64::new(10));
        budget.spend(0, 1100).unwrap();
        // A second of bytes in debt, no request.
        assert_eq!(budget.spend(0, 1), Err(1_000_000_000));
        assert_eq!(budget.requests.as_mut().unwrap().ready(0), Ok(()));
        budget.spend(1_000_000_000, 0).unwrap();
        assert!(!Budget::per_second(None, None).is_limited());
    }

    proptest! {
        #[test]
        fn what_is_paid_is_what_the_rate_allows(
            rate in 1u64..1 << 40,
            burst in 0u64..1 << 40,
            requests in prop::collection::vec((0u64..1 << 30, 0u64..1 << 32), 1..50),
        ) {
            let mut bucket = bucket(rate, burst);
            let (mut now, mut paid) = (0u64, 0i128);
            for (pause, cost) in requests {
                now += pause;
                if let Err(wait) = bucket.ready(now) {
                    prop_assert!(wait > 0);
                    if wait > 1 << 50 {
                        break;
                    }
                    prop_assert!(bucket.clone().ready(now + wait - 1).is_err());
                    now += wait;
                    prop_assert!(bucket.ready(now).is_ok());
                }
                prop_assert!(bucket.level <= bucket.burst);
                // Whatever this one costs.
                let allowed = i128::from(burst) * PARTS + i128::from(rate) * i128::from(now);
                prop_assert!(paid * PARTS <= allowed);
                bucket.pay(cost);
                paid += i128::from(cost);
            }
        }

        #[test]
        fn looking_often_neither_gains_nor_loses(
            rate in 1u64..1 << 40,
            debt in 1u64..1 << 40,
            moments in prop::collection::vec(0u64..1 << 20, 1..50),
        ) {
            let mut often = bucket(rate, 0);
            often.pay(debt);
            let mut once = often.clone();
            let mut now = 0;
            for moment in moments {
                now += moment;
                let _ = often.ready(now);
            }
            prop_assert_eq!(often.ready(now), once.ready(now));
            prop_assert_eq!(often.level, once.level);
        }
    }
}
