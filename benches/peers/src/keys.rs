//! Which accounts a client picks: all alike, or few of them most of the time.

use rand::Rng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use std::fmt;

/// The exponent that YCSB has.
const EXPONENT: f64 = 0.99;

/// How keys are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Spread {
    Uniform,
    Zipfian,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Spread::Uniform => "uniform",
            Spread::Zipfian => "zipfian",
        })
    }
}

/// Draws numbers below a bound.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys {
    Uniform { below: u64 },
    Zipfian { below: u64, ranks: Zipf<f64> },
}

impl Keys {
    pub(crate) fn new(spread: Spread, below: u64) -> Keys {
        match spread {
            Spread::Uniform => Keys::Uniform { below },
            Spread::Zipfian => {
                let ranks = Zipf::new(below as f64, EXPONENT).expect("there is one key at least");
                Keys::Zipfian { below, ranks }
            }
        }
    }

    pub(crate) fn draw(&self, random: &mut StdRng) -> u64 {
        match self {
            Keys::Uniform { below } => random.random_range(0..*below),
            // Scattered, as in YCSB: the keys that are in demand do not lie beside each other.
            Keys::Zipfian { below, .. } => scatter(self.rank(random)) % below,
        }
    }

    /// A number below the bound, small ones most of the time.
    pub(crate) fn rank(&self, random: &mut StdRng) -> u64 {
        match self {
            Keys::Uniform { .. } => self.draw(random),
            // From 1 to the bound, as whole numbers.
            Keys::Zipfian { below, ranks } => (ranks.sample(random) as u64 - 1).min(below - 1),
        }
    }
}

/// The finalizer of splitmix64: every bit of the answer depends on every bit of the number.
fn scatter(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn numbers_stay_below_the_bound() {
        let mut random = StdRng::seed_from_u64(1);
        for spread in [Spread::Uniform, Spread::Zipfian] {
            for below in [1, 2, 1000] {
                let keys = Keys::new(spread, below);
                for _ in 0..10_000 {
                    assert!(keys.draw(&mut random) < below);
                    assert!(keys.rank(&mut random) < below);
                }
            }
        }
    }

    #[test]
    fn some_zipfian_keys_are_much_in_demand() {
        let mut random = StdRng::seed_from_u64(1);
        let keys = Keys::new(Spread::Zipfian, 1000);
        let mut draws = vec![0; 1000];
        for _ in 0..100_000 {
            draws[keys.draw(&mut random) as usize] += 1;
        }
        // The first of 1,000 ranks has 13 % of all draws at this exponent.
        let most = draws.iter().max().copied().unwrap_or(0);
        assert!((11_000..18_000).contains(&most), "{most}");
    }
}
