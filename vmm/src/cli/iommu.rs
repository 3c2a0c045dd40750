//! The values of `--iommu`, as the help shows them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::Iommu;

impl ValueEnum for Iommu {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Type1, Self::Iommufd]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Auto => "auto",
            Self::Type1 => "type1",
            Self::Iommufd => "iommufd",
        }))
    }
}
