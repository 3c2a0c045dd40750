//! Calls of programs that use iommufd with mock devices.

use super::iommufd::call;
use super::{Generator, Kind, PAGE};
use crate::call::{Call, IommufdCall};

/// Addresses at the edges of what a mock IOMMU maps.
pub const EDGES: [u64; 8] = [
    1 << 24,
    1 << 24,
    1 << 24,
    1 << 24,
    (1 << 24) - 4 * PAGE,
    (1 << 31) - 4 * PAGE,
    (1 << 31) - PAGE / 2,
    (1 << 24) + PAGE / 2,
];

impl Generator<'_> {
    /// The next call of a program that uses mock devices.
    pub fn next_of_mock(&mut self) -> Call {
        let step = self.made;
        self.made = step.saturating_add(1);
        match step < 4 && self.numbers.percent(90) {
            true => self.missing_of_mock(),
            false => self.anything_of_mock(),
        }
    }

    fn missing_of_mock(&mut self) -> Call {
        if !self.is_open(Kind::Iommufd) {
            return Call::OpenIommufd;
        }
        if self.objects.spaces.is_empty() {
            return call(self.one(Kind::Iommufd), IommufdCall::Alloc(0));
        }
        match self.numbers.percent(50) {
            true => self.mock_attach(),
            false => self.map_ioas(),
        }
    }

    fn anything_of_mock(&mut self) -> Call {
        match self.numbers.below(100) {
            0 => Call::OpenIommufd,
            1..3 => Call::Close(self.any_file()),
            3..35 => self.map_ioas(),
            35..52 => self.unmap_ioas(),
            52..60 => self.iova_ranges(),
            60..65 => self.allow_iovas(),
            65..71 => self.alloc_or_destroy(),
            71..74 => self.mock_destroy(),
            74..80 => self.option(),
            80..88 => self.mock_attach(),
            88..96 => self.mock_replace(),
            _ => self.raw(),
        }
    }

    fn target(&mut self) -> u32 {
        if self.numbers.percent(80) { self.space() } else { self.id() }
    }

    fn mock_attach(&mut self) -> Call {
        let made = IommufdCall::MockAttach(self.target());
        call(self.iommufd(), made)
    }

    fn mock(&mut self) -> u32 {
        match self.numbers.percent(90) {
            true => self.numbers.any(&self.objects.mocks),
            false => self.id(),
        }
    }

    fn mock_replace(&mut self) -> Call {
        let made = IommufdCall::MockReplace(self.mock(), self.target());
        call(self.iommufd(), made)
    }

    fn mock_destroy(&mut self) -> Call {
        let made = IommufdCall::Destroy(self.mock());
        call(self.iommufd(), made)
    }
}
