//! Random sequences of calls, legal and not, on two implementations in step.

mod generator;
mod numbers;

use serde::Serialize;

use crate::call::{Call, Outcome, Player};
use crate::{Core, Scene};
use generator::Generator;

/// How many calls a sequence has.
pub const STEPS: u32 = 50;

/// A call that two implementations answer differently. The sequence ends with it: from there on they differ in
/// state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The sequence's.
    pub seed: u64,
    /// The calls before it.
    pub step: u32,
    /// The call.
    pub call: String,
    /// The model's answer.
    pub model: String,
    /// The other's.
    pub other: String,
    /// The calls that succeeded before, for a reader.
    pub before: Vec<String>,
}

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Sequences.
    pub sequences: u64,
    /// Calls that both carried out.
    pub calls: u64,
    /// Of those, how many failed: an illegal call is one that both refuse.
    pub refused: u64,
    /// Every difference.
    pub differences: Vec<Difference>,
}

/// Runs a sequence on both, and closes what it opened.
pub fn run(
    seed: u64,
    scene: &Scene,
    model: &mut impl Core,
    other: &mut impl Core,
    report: &mut Report,
) {
    let mut generator = Generator::new(seed, scene);
    let (mut model, mut other) = (Player::new(model), Player::new(other));
    let mut before = Vec::new();
    report.sequences = report.sequences.saturating_add(1);
    for step in 0..STEPS {
        let call = generator.next();
        let outcomes = [model.perform(&call), other.perform(&call)];
        report.calls = report.calls.saturating_add(1);
        let [ours, theirs] = &outcomes;
        if ours != theirs {
            report.differences.push(Difference {
                seed,
                step,
                call: format!("{call:x?}"),
                model: format!("{ours:x?}"),
                other: format!("{theirs:x?}"),
                before,
            });
            break;
        }
        match ours {
            Outcome::Errno(_) => report.refused = report.refused.saturating_add(1),
            _ if is_change(&call) => before.push(format!("{call:x?}")),
            _ => {}
        }
        generator.learn(&call, ours);
    }
    model.close_all();
    other.close_all();
}

/// Whether a call changes anything when it succeeds.
fn is_change(call: &Call) -> bool {
    !matches!(
        call,
        Call::ApiVersion(_)
            | Call::CheckExtension(..)
            | Call::IommuInfo(..)
            | Call::GroupStatus(..)
            | Call::DeviceInfo(..)
            | Call::RegionInfo(..)
            | Call::IrqInfo(..)
    )
}
