//! `--on-error`: its values, as the help shows them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::OnError;

impl ValueEnum for OnError {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Stop, Self::Reset, Self::Detach, Self::Report]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Stop => ("stop", "End the guest: what the device did since may be wrong"),
            Self::Reset => (
                "reset",
                "Reset the device, and let the guest's driver begin anew; where it has no reset of its own, as stop",
            ),
            Self::Detach => ("detach", "Take the device from the guest, which goes on without it"),
            Self::Report => ("report", "Say so, and go on"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}
