//! Calls of programs that use iommufd and character devices.

use vfio_model::{AttachPt, BindIommufd, Fd, IoasMap, IoasMapFile, IoasUnmap, IommuOption};

use super::{Generator, Kind, PAGE};
use crate::call::{Call, IommufdCall, Outcome, Slot};

/// What the generator knows of the objects of iommufds.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// All numbers that the kernel returned.
    ids: Vec<u32>,
    /// Those of address spaces.
    pub(super) spaces: Vec<u32>,
    /// Those of mock devices.
    pub(super) mocks: Vec<u32>,
    is_bound: bool,
    is_attached: bool,
}

pub(super) fn call(slot: Slot, call: IommufdCall) -> Call {
    Call::Iommufd(slot, Box::new(call))
}

/// The bytes of a struct: 32-bit words, then 64-bit words.
fn bytes(words: &[u32], longs: &[u64]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_ne_bytes());
    words.chain(longs.iter().flat_map(|long| long.to_ne_bytes())).collect()
}

impl Generator<'_> {
    /// Learns from the result of a call of iommufd.
    pub fn learn_iommufd(&mut self, made: &IommufdCall, outcome: &Outcome) {
        match (made, outcome) {
            (IommufdCall::Map(map), Outcome::Number(iova)) => {
                self.ranges.push((*iova, map.length));
            }
            (IommufdCall::MapFile(_, map), Outcome::Number(iova)) => {
                self.ranges.push((*iova, map.length));
            }
            (IommufdCall::Alloc(_), Outcome::Number(id)) => {
                let id = u32::try_from(*id).unwrap_or(0);
                self.objects.ids.push(id);
                self.objects.spaces.push(id);
            }
            (IommufdCall::Attach(_), Outcome::Number(id)) => {
                self.objects.ids.push(u32::try_from(*id).unwrap_or(0));
                self.objects.is_attached = true;
            }
            (IommufdCall::MockAttach(_), Outcome::Number(numbers)) => {
                let [mock, page_table, device] = [0, 20, 40]
                    .map(|place| u32::try_from(numbers >> place & 0xf_ffff).unwrap_or(0));
                self.objects.ids.extend([mock, page_table, device]);
                self.objects.mocks.push(mock);
            }
            (IommufdCall::Bind(..), Outcome::Number(id)) => {
                self.objects.ids.push(u32::try_from(*id).unwrap_or(0));
                self.objects.is_bound = true;
            }
            (IommufdCall::Detach(_), Outcome::Done) => self.objects.is_attached = false,
            _ => {}
        }
        self.objects.is_bound &= self.is_open(Kind::Cdev);
        self.objects.is_attached &= self.objects.is_bound;
    }

    /// The next call of a program that uses iommufd.
    pub fn next_of_iommufd(&mut self) -> Call {
        let step = self.made;
        self.made = step.saturating_add(1);
        match step < 6 && self.numbers.percent(95) || self.numbers.percent(10) {
            true => self.missing_of_iommufd(),
            false => self.anything_of_iommufd(),
        }
    }

    fn missing_of_iommufd(&mut self) -> Call {
        if !self.is_open(Kind::Iommufd) {
            return Call::OpenIommufd;
        }
        if !self.is_open(Kind::Cdev) {
            return self.open_cdev();
        }
        if !self.objects.is_bound {
            let iommufd = self.one(Kind::Iommufd);
            return call(self.one(Kind::Cdev), IommufdCall::Bind(BindIommufd::ARGSZ, 0, iommufd));
        }
        if self.objects.spaces.is_empty() {
            return call(self.one(Kind::Iommufd), IommufdCall::Alloc(0));
        }
        match self.objects.is_attached || self.numbers.percent(40) {
            true => self.map_ioas(),
            false => self.attach(),
        }
    }

    fn anything_of_iommufd(&mut self) -> Call {
        match self.numbers.below(100) {
            0 => Call::OpenIommufd,
            1..4 => self.open_cdev(),
            4 => Call::OpenKvm,
            5 => self.open_group(),
            6 => Call::OpenEventfd,
            7..10 => Call::Close(self.any_file()),
            10..28 => self.map_ioas(),
            28..44 => self.unmap_ioas(),
            44..52 => self.iova_ranges(),
            52..56 => self.allow_iovas(),
            56..61 => self.alloc_or_destroy(),
            61..66 => self.option(),
            66..71 => self.bind(),
            71..79 => self.attach(),
            79..82 => self.detach(),
            82..86 => self.hot_reset(),
            86..89 => self.link_cdev(),
            89..92 => self.info(),
            92..95 => self.irqs(),
            95 => Call::Reset(self.some(Kind::Device)),
            _ => self.raw(),
        }
    }

    /// Any open file.
    pub(super) fn any_file(&mut self) -> Slot {
        match self.numbers.below(3) {
            0 => self.one(Kind::Iommufd),
            1 => self.one(Kind::Cdev),
            _ => self.anyone(),
        }
    }

    /// Usually the first iommufd, which has most objects.
    pub(super) fn iommufd(&mut self) -> Slot {
        let first = self.files.iter().position(|file| *file == (Kind::Iommufd, true));
        match (self.numbers.below(20), first) {
            (0, _) => self.any_file(),
            (1..15, Some(first)) => Slot::File(first),
            _ => self.some(Kind::Iommufd),
        }
    }

    fn open_cdev(&mut self) -> Call {
        let names: Vec<String> = self.scene.devices.iter().map(|(_, name)| name.clone()).collect();
        Call::OpenCdev(self.numbers.pick(&names).cloned().unwrap_or_default())
    }

    /// The number of an object, or a number that may name none.
    pub(super) fn id(&mut self) -> u32 {
        match self.numbers.percent(80) {
            true => self.numbers.any(&self.objects.ids),
            false => self.numbers.any(&[0, 1, 2, 3, 4, 5, u32::MAX]),
        }
    }

    pub(super) fn space(&mut self) -> u32 {
        match self.numbers.percent(92) {
            true => self.numbers.any(&self.objects.spaces),
            false => self.id(),
        }
    }

    pub(super) fn map_ioas(&mut self) -> Call {
        if self.scene.description.kernel.maps_files() && self.numbers.percent(30) {
            return self.map_file();
        }
        let map = self.ioas_map();
        call(self.iommufd(), IommufdCall::Map(map))
    }

    /// Maps a part of a file, which is usually a memfd and usually large enough.
    fn map_file(&mut self) -> Call {
        if !self.is_open(Kind::Memory) {
            return Call::OpenMemory(self.numbers.any(&[64 * PAGE, 64 * PAGE, PAGE, 5 * PAGE + 1]));
        }
        let IoasMap { flags, ioas, length, iova, .. } = self.ioas_map();
        let start = self.numbers.below(66).wrapping_mul(PAGE);
        let start = self.perhaps_odd(start);
        let map = IoasMapFile { flags, ioas, file: Fd(-1), start, length, iova };
        let file = self.mapped_file();
        call(self.iommufd(), IommufdCall::MapFile(file, map))
    }

    fn ioas_map(&mut self) -> IoasMap {
        let (iova, length) = self.range();
        self.ranges.push((iova, length));
        let user_va = self.vaddr();
        IoasMap {
            flags: self.numbers.any(&[7, 7, 7, 7, 7, 7, 7, 3, 5, 1, 6, 6, 4, 0, 8]),
            ioas: self.space(),
            user_va: self.perhaps_odd(user_va),
            length: self.perhaps_odd(length),
            iova: self.perhaps_odd(iova),
        }
    }

    /// Usually a memfd. An iommufd with a map of a device's or its own file would never be freed,
    /// because the map holds the file, and the file the iommufd.
    fn mapped_file(&mut self) -> Slot {
        match self.some(Kind::Memory) {
            Slot::File(number) => match self.files.get(number).map(|(kind, _)| *kind) {
                Some(Kind::Memory | Kind::Eventfd) => Slot::File(number),
                _ => Slot::Unused,
            },
            slot => slot,
        }
    }

    pub(super) fn unmap_ioas(&mut self) -> Call {
        let unmap = self.ioas_unmap();
        call(self.iommufd(), IommufdCall::Unmap(unmap))
    }

    fn ioas_unmap(&mut self) -> IoasUnmap {
        let (iova, length) = match self.numbers.below(10) {
            0 => (0, u64::MAX),
            1 => (0, 64 * PAGE),
            _ => self.range(),
        };
        IoasUnmap {
            ioas: self.space(),
            iova: self.perhaps_odd(iova),
            length: self.perhaps_odd(length),
        }
    }

    /// A size of a struct: usually right, sometimes smaller or larger.
    fn size(&mut self, right: u32) -> u32 {
        let sizes =
            [right, right, right, right, right.saturating_sub(1), 0, right.saturating_add(8)];
        self.numbers.any(&sizes)
    }

    /// What lies behind a struct: zeros, or something that the kernel does not know.
    fn tail(&mut self, bytes: &mut Vec<u8>, size: u32) {
        let byte = u8::from(self.numbers.percent(30));
        bytes.resize(bytes.len().max(size as usize), byte);
    }

    fn reserved(&mut self) -> u32 {
        u32::from(self.numbers.percent(5))
    }

    /// Usually no flag; a PASID, or a flag that no kernel knows.
    fn flag_of_attach(&mut self) -> u32 {
        self.reserved() << 3 | self.reserved()
    }

    pub(super) fn iova_ranges(&mut self) -> Call {
        let (size, room) = (self.size(32), self.numbers.any(&[0, 1, 2, 3, 8, 8]));
        let (space, reserved) = (self.space(), self.reserved());
        let mut argument = bytes(&[size, space, room, reserved], &[0, 0xa5a5]);
        self.tail(&mut argument, size);
        // Bytes that the kernel does not write are visible.
        argument.resize(argument.len().saturating_add(8 * 16), 0xa5);
        call(self.iommufd(), IommufdCall::Request(32, argument))
    }

    pub(super) fn allow_iovas(&mut self) -> Call {
        let (size, count) = (self.size(24), self.numbers.any(&[0_u32, 0, 0, 1, 1, 1, 2, 3]));
        let (space, reserved) = (self.space(), self.reserved());
        let mut argument = bytes(&[size, space, count, reserved], &[0]);
        self.tail(&mut argument, size);
        for _ in 0..count {
            let (iova, length) = self.range();
            let first = self.perhaps_odd(iova);
            let pages = self.numbers.any(&[1, 4, 4, 1 << 20]);
            let last = first.wrapping_add(length.wrapping_mul(pages)).wrapping_sub(1);
            argument.extend(bytes(&[], &[first, self.perhaps_odd(last)]));
        }
        call(self.iommufd(), IommufdCall::Request(30, argument))
    }

    pub(super) fn alloc_or_destroy(&mut self) -> Call {
        let made = match self.numbers.below(10) {
            0..5 => IommufdCall::Alloc(self.reserved()),
            5..8 => IommufdCall::Destroy(self.space()),
            _ => IommufdCall::Destroy(self.id()),
        };
        call(self.iommufd(), made)
    }

    pub(super) fn option(&mut self) -> Call {
        let made = self.iommu_option();
        call(self.iommufd(), IommufdCall::Option(made))
    }

    fn iommu_option(&mut self) -> IommuOption {
        let option = self.numbers.any(&[0, 0, 1, 1, 1, 1, 2]);
        let object = match option == 1 || self.numbers.percent(10) {
            true => self.space(),
            false => 0,
        };
        IommuOption {
            option,
            op: self.numbers.any(&[0, 0, 0, 0, 1, 1, 1, 2]),
            object,
            value: self.numbers.any(&[0, 0, 0, 1, 1, 2, u64::MAX]),
        }
    }

    fn bind(&mut self) -> Call {
        let made =
            IommufdCall::Bind(self.argsz(BindIommufd::ARGSZ), self.reserved(), self.iommufd());
        call(self.cdev(), made)
    }

    /// Usually the file of a character device.
    fn cdev(&mut self) -> Slot {
        match self.numbers.percent(5) {
            true => self.any_file(),
            false => self.some(Kind::Cdev),
        }
    }

    fn link_cdev(&mut self) -> Call {
        let (kvm, file) = (self.some(Kind::Kvm), self.cdev());
        match self.numbers.percent(60) {
            true => Call::Link(kvm, file),
            false => Call::Unlink(kvm, file),
        }
    }

    /// Usually the size without a PASID; sometimes with one, or a wrong size.
    fn size_of_attach(&mut self, right: u32) -> u32 {
        match self.numbers.percent(20) {
            true => right.saturating_add(4),
            false => self.argsz(right),
        }
    }

    fn attach(&mut self) -> Call {
        let attach = AttachPt {
            argsz: self.size_of_attach(AttachPt::ARGSZ),
            flags: self.flag_of_attach(),
            id: if self.numbers.percent(80) { self.space() } else { self.id() },
        };
        call(self.cdev(), IommufdCall::Attach(attach))
    }

    fn detach(&mut self) -> Call {
        let (argsz, flags) = (self.size_of_attach(AttachPt::DETACH_ARGSZ), self.flag_of_attach());
        call(self.cdev(), IommufdCall::Detach(AttachPt { argsz, flags, id: 0 }))
    }

    fn hot_reset(&mut self) -> Call {
        let device = self.some(Kind::Device);
        // Of a container the same numbers mean maps.
        let is_file = |kind| self.is_open(kind);
        let device = match is_file(Kind::Device) || is_file(Kind::Cdev) {
            true => self.one_of_device(device),
            false => Slot::Unused,
        };
        let made = match self.numbers.below(4) {
            0 => IommufdCall::HotReset(Vec::new()),
            1 => IommufdCall::HotReset(vec![self.some(Kind::Group)]),
            _ => IommufdCall::HotResetInfo(self.numbers.any(&[0, 11, 12, 20, 28, 28, 64])),
        };
        call(device, made)
    }

    /// The file if it is one of a device; otherwise a file of a device.
    fn one_of_device(&mut self, slot: Slot) -> Slot {
        let kind = match slot {
            Slot::File(number) => self.files.get(number).map(|(kind, _)| *kind),
            _ => None,
        };
        match kind {
            Some(Kind::Device | Kind::Cdev) | None => slot,
            Some(_) => self.one(Kind::Device),
        }
    }

    /// An ioctl by number, with a struct of any size.
    pub(super) fn raw(&mut self) -> Call {
        let number =
            self.numbers.any(&[28, 29, 33, 33, 33, 34, 34, 35, 35, 36, 36, 36, 21, 27, 43, 46]);
        let mut argument = self.argument_of(number);
        let size = self.size(u32::try_from(argument.len()).unwrap_or(0));
        let word = size.to_ne_bytes();
        argument.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        self.tail(&mut argument, size);
        call(self.iommufd(), IommufdCall::Request(number, argument))
    }

    fn argument_of(&mut self, number: u32) -> Vec<u8> {
        match number {
            28 => bytes(&[0, self.id()], &[]),
            29 => bytes(&[0, self.reserved(), 0xa5a5], &[]),
            46 => bytes(&[0, self.reserved()], &[]),
            33 => {
                let (map, reserved) = (self.ioas_map(), self.reserved());
                let longs = [map.user_va, map.length, map.iova];
                bytes(&[0, map.flags, map.ioas, reserved], &longs)
            }
            34 => {
                let unmap = self.ioas_unmap();
                bytes(&[0, unmap.ioas], &[unmap.iova, unmap.length])
            }
            36 => {
                let (space, op) = (self.space(), self.numbers.any(&[0, 0, 1, 1, 2, 3]));
                bytes(&[0, space, op | self.reserved() << 16], &[])
            }
            _ => {
                let (option, reserved) = (self.iommu_option(), self.reserved());
                let op = u32::from(option.op) | reserved << 16;
                bytes(&[0, option.option, op, option.object], &[option.value])
            }
        }
    }
}
