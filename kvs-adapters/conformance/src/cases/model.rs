//! Random operations, compared with the plainest model of a store: maps in memory.
//!
//! Alphabets are small, so that operations meet at the same cells and timestamps all the time. A failing sequence is
//! shrunk to the shortest one that still fails and printed with the seed that leads to it.
//!
//! ```text
//!   ATLAS_MODEL_SEED=7     begin at this seed
//!   ATLAS_MODEL_CASES=500  run this many sequences
//! ```

mod check;
mod ops;
mod reference;

use crate::TestStore;
use ops::Op;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const CASES: u64 = 64;
const SHRINKING_STEPS_MAX: usize = 1_000;

/// A store and a model of maps answer random sequences of operations in the same way.
pub async fn random_operations_agree_with_the_model(store: &mut TestStore) {
    let first_seed = setting("ATLAS_MODEL_SEED").unwrap_or(0);
    let operations = ops::sequence(store.capabilities());
    for seed in first_seed..first_seed + setting("ATLAS_MODEL_CASES").unwrap_or(CASES) {
        let mut tree = operations.new_tree(&mut runner(seed)).expect("the strategy rejects nothing");
        if let Err(difference) = check::run(store, &tree.current()).await {
            let (shortest, difference) = shrink(store, &mut tree, difference).await;
            panic!(
                "the store and the model differ: {difference}\n{}\nRun it again with ATLAS_MODEL_SEED={seed} ATLAS_MODEL_CASES=1",
                shortest.iter().map(|op| format!("  {op:?}\n")).collect::<String>()
            );
        }
    }
}

async fn shrink(
    store: &mut TestStore,
    tree: &mut dyn ValueTree<Value = Vec<Op>>,
    mut difference: String,
) -> (Vec<Op>, String) {
    let mut shortest = tree.current();
    let mut smaller = tree.simplify();
    for _ in 0..SHRINKING_STEPS_MAX {
        if !smaller {
            break;
        }
        smaller = match check::run(store, &tree.current()).await {
            Err(found) => {
                (shortest, difference) = (tree.current(), found);
                tree.simplify()
            }
            Ok(()) => tree.complicate(),
        };
    }
    (shortest, difference)
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("the setting is a number"))
}
