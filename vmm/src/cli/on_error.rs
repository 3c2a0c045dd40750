//! The values of `--on-error`, as the help shows them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::OnError;

impl ValueEnum for OnError {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Stop, Self::Reset, Self::Detach, Self::Report]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Stop => ("stop", "Stop the guest: data that the device wrote since may be wrong"),
            Self::Reset => (
                "reset",
                "Reset the device, so that the guest's driver starts again; like stop if the device has no reset of its own",
            ),
            Self::Detach => ("detach", "Detach the device; the guest continues without it"),
            Self::Report => ("report", "Log a warning and continue"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}
