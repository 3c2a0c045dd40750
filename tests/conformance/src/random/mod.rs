//! Random sequences of legal and illegal calls, made on two implementations in step.

mod generator;
mod numbers;

use serde::Serialize;

use crate::call::{Call, Outcome, Player};
use crate::{Core, Scene};
use generator::Generator;

/// The number of calls of a sequence.
pub const STEPS: u32 = 50;

/// A call with two different answers. It ends the sequence, because the states differ from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The seed of the sequence.
    pub seed: u64,
    /// The number of calls before this one.
    pub step: u32,
    /// The call.
    pub call: String,
    /// The model's answer.
    pub model: String,
    /// The answer of the other implementation.
    pub other: String,
    /// The calls before this one that changed the state.
    pub before: Vec<String>,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of sequences.
    pub sequences: u64,
    /// The number of calls that both made.
    pub calls: u64,
    /// The number of those calls that both refused.
    pub refused: u64,
    /// All differences.
    pub differences: Vec<Difference>,
}

/// Runs a sequence on both implementations, and closes its files.
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
            Outcome::Errno(_) | Outcome::Refused(..) => {
                report.refused = report.refused.saturating_add(1)
            }
            _ if is_change(&call) => before.push(format!("{call:x?}")),
            _ => {}
        }
        generator.learn(&call, ours);
    }
    model.close_all();
    other.close_all();
}

/// Whether a successful call changes the state.
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
