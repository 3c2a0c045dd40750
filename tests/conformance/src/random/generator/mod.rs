//! Makes calls. Most could succeed: they use open files, and arguments at the edges of what is
//! legal.

mod iommufd;
mod mock;

use vfio_model::{IrqData, IrqSet, MapDma, UnmapDma};

use super::numbers::Numbers;
use crate::Scene;
use crate::arena::{PAGE, READABLE, WRITABLE};
use crate::call::{Call, IrqCall, Outcome, Slot};
use iommufd::Objects;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Container,
    Group,
    Device,
    Eventfd,
    Kvm,
    Iommufd,
    Cdev,
    Memory,
}

/// What the program of a sequence uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Groups,
    Iommufd,
    Both,
    /// An iommufd with mock devices.
    Mock,
}

/// Makes the next call, and learns from results which files are open.
pub struct Generator<'a> {
    numbers: Numbers,
    scene: &'a Scene,
    /// The files in the order of opens, and whether they are open.
    files: Vec<(Kind, bool)>,
    /// The mappings that were tried, to unmap them and map them again.
    ranges: Vec<(u64, u64)>,
    made: u32,
    /// The last group that was opened.
    group: u32,
    /// The progress of a program, as far as the generator knows it.
    has_container: bool,
    has_iommu: bool,
    course: Course,
    objects: Objects,
}

/// Numbers at and beyond limits.
const ODD: [u64; 6] = [0, 1, PAGE - 1, PAGE + 1, u64::MAX, 1 << 63];

impl<'a> Generator<'a> {
    pub fn new(seed: u64, scene: &'a Scene) -> Self {
        let mut numbers = Numbers::new(seed);
        let course = match scene.description.iommufd {
            _ if scene.description.mock_devices && numbers.percent(35) => Some(&Course::Mock),
            true => numbers.pick(&[Course::Groups, Course::Iommufd, Course::Iommufd, Course::Both]),
            false => None,
        };
        Self {
            course: course.copied().unwrap_or(Course::Groups),
            objects: Objects::default(),
            numbers,
            scene,
            files: Vec::new(),
            ranges: Vec::new(),
            made: 0,
            group: 0,
            has_container: false,
            has_iommu: false,
        }
    }

    /// Learns from the result of a call.
    pub fn learn(&mut self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (Call::OpenContainer, Outcome::Opened) => self.files.push((Kind::Container, true)),
            (Call::OpenGroup(group), Outcome::Opened) => {
                self.group = *group;
                self.files.push((Kind::Group, true));
            }
            (Call::OpenDevice(..), Outcome::Opened) => self.files.push((Kind::Device, true)),
            (Call::OpenEventfd, Outcome::Opened) => self.files.push((Kind::Eventfd, true)),
            (Call::OpenIommufd, Outcome::Opened) => self.files.push((Kind::Iommufd, true)),
            (Call::OpenCdev(_), Outcome::Opened) => self.files.push((Kind::Cdev, true)),
            (Call::Iommufd(_, made), _) => self.learn_iommufd(made, outcome),
            (Call::OpenKvm, Outcome::Opened) => self.files.push((Kind::Kvm, true)),
            (Call::OpenMemory(_), Outcome::Opened) => self.files.push((Kind::Memory, true)),
            (Call::Close(Slot::File(number)), Outcome::Done) => {
                if let Some(file) = self.files.get_mut(*number) {
                    file.1 = false;
                }
            }
            (Call::SetContainer(..), Outcome::Done) => self.has_container = true,
            (Call::SetIommu(..), Outcome::Done) => self.has_iommu = true,
            (Call::UnsetContainer(_), Outcome::Done) => self.has_container = false,
            _ => {}
        }
        self.has_container &= self.is_open(Kind::Group) || self.is_open(Kind::Device);
        self.has_iommu &= self.has_container;
    }

    fn is_open(&self, kind: Kind) -> bool {
        self.files.contains(&(kind, true))
    }

    /// The next call.
    pub fn next(&mut self) -> Call {
        match self.course {
            Course::Iommufd => return self.next_of_iommufd(),
            Course::Mock => return self.next_of_mock(),
            Course::Both if self.numbers.percent(50) => return self.next_of_iommufd(),
            Course::Groups | Course::Both => {}
        }
        let step = self.made;
        self.made = step.saturating_add(1);
        match step < 5 && self.numbers.percent(95) {
            true => self.missing(),
            false => self.anything(),
        }
    }

    fn anything(&mut self) -> Call {
        let far = self.has_iommu && self.is_open(Kind::Eventfd) && self.is_open(Kind::Device);
        match self.numbers.below(100) {
            0..60 if !far && self.numbers.percent(70) => self.missing(),
            0..2 => Call::OpenContainer,
            2..4 => self.open_group(),
            4 => Call::OpenKvm,
            5..7 => self.open_device(),
            7..9 => Call::Close(self.anyone()),
            9..31 => self.map(),
            31..49 => self.unmap(),
            49..57 => self.iommu_info(),
            57..65 => self.about_groups(),
            65..71 => self.about_containers(),
            71..75 => self.about_kvm(),
            75..85 => self.info(),
            85..99 => self.irqs(),
            _ => Call::Reset(self.some(Kind::Device)),
        }
    }

    /// The next call of a program that uses a device.
    fn missing(&mut self) -> Call {
        let open = [Kind::Container, Kind::Group, Kind::Eventfd].map(|kind| self.is_open(kind));
        match (open, self.has_container, self.has_iommu) {
            ([false, ..], ..) => Call::OpenContainer,
            ([_, false, _], ..) => self.open_group(),
            (_, false, _) => Call::SetContainer(self.one(Kind::Group), self.one(Kind::Container)),
            (_, _, false) => {
                Call::SetIommu(self.one(Kind::Container), self.numbers.any(&[3, 3, 3, 1]))
            }
            ([_, _, false], ..) => Call::OpenEventfd,
            _ => self.open_device(),
        }
    }

    /// An open file of a kind, if there is one. A device may have two kinds of files, and an iommufd
    /// can be a container.
    fn one(&mut self, kind: Kind) -> Slot {
        let open = self.files.iter().enumerate();
        let compat = (self.course == Course::Both && kind == Kind::Container)
            .then_some((Kind::Iommufd, true));
        let open: Vec<usize> = open
            .filter(|(_, file)| file.1 && is_a(file.0, kind) || Some(**file) == compat)
            .map(|(number, _)| number)
            .collect();
        self.numbers.pick(&open).map_or(Slot::Unused, |number| Slot::File(*number))
    }

    /// Usually a file of a kind; otherwise any file, or no file.
    fn some(&mut self, kind: Kind) -> Slot {
        match self.numbers.below(100) {
            0..3 => {
                self.numbers.pick(&[Slot::Negative, Slot::Unused]).copied().unwrap_or(Slot::Unused)
            }
            3..8 => self.anyone(),
            _ => self.one(kind),
        }
    }

    /// As [`Self::some`], without devices: on a device the numbers of the IOMMU's ioctls mean other
    /// calls.
    fn some_container(&mut self) -> Slot {
        let slot = self.some(Kind::Container);
        match slot {
            Slot::File(number)
                if self.files.get(number).is_some_and(|(kind, _)| is_a(*kind, Kind::Device)) =>
            {
                Slot::Unused
            }
            _ => slot,
        }
    }

    fn anyone(&mut self) -> Slot {
        let kinds =
            [Kind::Container, Kind::Group, Kind::Device, Kind::Device, Kind::Eventfd, Kind::Kvm];
        let kind = self.numbers.pick(&kinds).copied().unwrap_or(Kind::Group);
        self.one(kind)
    }

    fn open_group(&mut self) -> Call {
        let group = self.numbers.any(&self.scene.groups);
        Call::OpenGroup(if self.numbers.percent(3) { 9999 } else { group })
    }

    /// Usually a device of the last group that was opened.
    fn open_device(&mut self) -> Call {
        let strict = self.numbers.percent(90);
        let devices = self.scene.devices.iter();
        let names: Vec<&String> = devices
            .filter(|(group, _)| *group == self.group || !strict)
            .map(|(_, name)| name)
            .collect();
        let mut name = self.numbers.pick(&names).map(|name| (*name).clone()).unwrap_or_default();
        let mut tail = vec![""; 20];
        tail.extend([" ", " x", "0", " vf_token=", "\n"]);
        name.push_str(self.numbers.pick(&tail).copied().unwrap_or_default());
        if self.numbers.percent(3) {
            name.clear();
        }
        Call::OpenDevice(self.some(Kind::Group), name)
    }

    /// The size of the struct, or a wrong size.
    fn argsz(&mut self, right: u32) -> u32 {
        match self.numbers.below(20) {
            0 => right.saturating_sub(1),
            1 => 0,
            2 => right.saturating_add(8),
            _ => right,
        }
    }

    fn about_groups(&mut self) -> Call {
        let group = self.some(Kind::Group);
        match self.numbers.below(10) {
            0..4 => Call::SetContainer(group, self.some(Kind::Container)),
            4..6 => Call::UnsetContainer(group),
            _ => Call::GroupStatus(group, self.argsz(8)),
        }
    }

    fn about_containers(&mut self) -> Call {
        let container = self.some(Kind::Container);
        let kinds = [1, 3, 3, 3, 6, 0, 2, 4, 5, 7, 8, 9, 10, 11, 1 << 32 | 3];
        match self.numbers.below(10) {
            0 => Call::ApiVersion(container),
            1..6 => Call::CheckExtension(container, self.numbers.any(&kinds)),
            _ => Call::SetIommu(container, self.numbers.any(&kinds)),
        }
    }

    fn irqfd(&mut self, kvm: Slot) -> Call {
        let (eventfd, resample) = (self.eventfd(), self.eventfd());
        let gsi = self.numbers.any(&[0, 5, 5, 5, 5, 24, u32::MAX]);
        let flags = self.numbers.any(&[0, 0, 0, 0, 1, 1, 2, 3, 4]);
        Call::Irqfd(kvm, eventfd, gsi, flags, resample)
    }

    fn about_kvm(&mut self) -> Call {
        let kvm = self.some(Kind::Kvm);
        if self.numbers.percent(50) {
            return self.irqfd(kvm);
        }
        let file = self.some(Kind::Group);
        match self.numbers.percent(60) {
            true => Call::Link(kvm, file),
            false => Call::Unlink(kvm, file),
        }
    }

    /// An address and a size: near other ranges, at the edges of the IOVA ranges, or not aligned.
    fn range(&mut self) -> (u64, u64) {
        if self.numbers.percent(50)
            && let Some(range) = self.numbers.pick(&self.ranges)
        {
            return *range;
        }
        let mut edges = vec![0, 0, 0, 0, 0, 0, 0, 0_u64.wrapping_sub(8 * PAGE)];
        if self.course == Course::Mock {
            edges.extend(mock::EDGES);
        }
        for range in &self.scene.description.iova_ranges {
            edges.extend([range.start, range.end].map(|edge| edge.wrapping_sub(4 * PAGE)));
        }
        let edge = self.numbers.any(&edges);
        let iova = edge.wrapping_add(self.numbers.below(24).wrapping_mul(PAGE));
        let size = self.numbers.below(5).wrapping_add(1).wrapping_mul(PAGE);
        (iova, size)
    }

    /// The value, a value beside it, or one at a limit.
    fn perhaps_odd(&mut self, value: u64) -> u64 {
        match self.numbers.below(40) {
            0 => self.numbers.any(&ODD),
            1 => value.wrapping_add(PAGE),
            2 => value.wrapping_sub(PAGE),
            3 => value.wrapping_add(1),
            _ => value,
        }
    }

    fn map(&mut self) -> Call {
        let (iova, size) = self.range();
        self.ranges.push((iova, size));
        let vaddr = self.vaddr();
        let map = MapDma {
            argsz: self.argsz(MapDma::ARGSZ),
            flags: self.numbers.any(&[3, 3, 3, 3, 3, 1, 2, 0, 4, 4, 7, 8]),
            vaddr: self.perhaps_odd(vaddr),
            iova: self.perhaps_odd(iova),
            size: self.perhaps_odd(size),
        };
        Call::Map(self.some_container(), map)
    }

    /// An address in the memory, at its edges, or behind it.
    fn vaddr(&mut self) -> u64 {
        let end = WRITABLE.wrapping_add(READABLE);
        let offset = match self.numbers.below(10) {
            0 => WRITABLE.wrapping_sub(2 * PAGE),
            1 => WRITABLE,
            2 => end.wrapping_sub(2 * PAGE),
            3 => end,
            _ => self.numbers.below(48).wrapping_mul(PAGE),
        };
        self.scene.arena.base.wrapping_add(offset)
    }

    fn unmap(&mut self) -> Call {
        let (iova, size) = self.range();
        let flags = self.numbers.any(&[0, 0, 0, 0, 0, 0, 2, 4, 4, 6, 8]);
        let all = flags & 2 != 0 && self.numbers.percent(70);
        let (iova, size) = if all { (0, 0) } else { (iova, size) };
        let unmap = UnmapDma {
            argsz: self.argsz(UnmapDma::ARGSZ),
            flags,
            iova: self.perhaps_odd(iova),
            size: self.perhaps_odd(size),
        };
        Call::Unmap(self.some_container(), unmap)
    }

    fn iommu_info(&mut self) -> Call {
        let sizes = [0, 15, 16, 18, 20, 22, 24, 24, 100, 104, 116, 119, 120, 128, 512];
        let compat = [24, 35, 36, 39, 40, 57, 71, 72, 87, 88, 104, 128];
        let size = match self.course == Course::Both && self.numbers.percent(50) {
            true => self.numbers.any(&compat),
            false => self.numbers.any(&sizes),
        };
        Call::IommuInfo(self.some_container(), size)
    }

    fn info(&mut self) -> Call {
        let device = self.some(Kind::Device);
        match self.numbers.below(3) {
            0 => Call::DeviceInfo(device, self.numbers.any(&[0, 15, 16, 18, 20, 23, 24, 64])),
            1 => {
                let sizes = [0, 31, 32, 32, 32, 39, 40, 64];
                let index = self.numbers.any(&[0, 1, 2, 3, 4, 5, 7, 7, 8, 9, 10, u32::MAX]);
                Call::RegionInfo(device, self.numbers.any(&sizes), index)
            }
            _ => {
                let index = self.numbers.any(&[0, 1, 2, 3, 4, 5, u32::MAX]);
                Call::IrqInfo(device, self.numbers.any(&[0, 15, 16, 16, 16, 32]), index)
            }
        }
    }

    fn irqs(&mut self) -> Call {
        let device = self.some(Kind::Device);
        let index = self.numbers.any(&[0, 0, 0, 1, 2, 2, 2, 2, 3, 4, 5]);
        let kinds = [1, 1, 2, 4, 4, 4, 4, 4, 4, 4, 0, 5];
        let actions = [32, 32, 32, 32, 32, 32, 32, 32, 32, 8, 16, 16, 0, 48, 64];
        let flags = self.numbers.any(&kinds) | self.numbers.any(&actions);
        let start = self.numbers.any(&[0, 0, 0, 0, 1, 2, 64, 65, u32::MAX]);
        let count = self.numbers.any(&[0, 1, 1, 1, 2, 3, 64, u32::MAX]);
        let given = u64::from(count.min(64));
        let (eventfds, data) = match flags & 7 {
            2 => (
                None,
                IrqData::Bools((0..given).map(|_| u8::from(self.numbers.percent(50))).collect()),
            ),
            4 => (Some((0..given).map(|_| self.eventfd()).collect::<Vec<_>>()), IrqData::None),
            _ => (None, IrqData::None),
        };
        let fds = eventfds.as_ref().map_or(0, Vec::len).saturating_mul(4);
        let size = u32::try_from(data.bytes().len().saturating_add(fds)).unwrap_or(0);
        let mut set = IrqSet::new(flags, index, start, count, data);
        set.argsz = self.argsz(IrqSet::HEADER.saturating_add(size));
        Call::SetIrqs(device, Box::new(IrqCall { set, eventfds }))
    }

    /// An eventfd, -1, or a file that is no eventfd.
    fn eventfd(&mut self) -> Slot {
        match self.numbers.below(20) {
            0..5 => Slot::Negative,
            5 => self.anyone(),
            _ => self.one(Kind::Eventfd),
        }
    }
}

/// Whether a file of one kind is used as one of another.
fn is_a(kind: Kind, wanted: Kind) -> bool {
    kind == wanted || (kind, wanted) == (Kind::Cdev, Kind::Device)
}
