//! Calls of iommufd and of character devices.

use std::io;

use vfio_model::{AttachPt, BindIommufd, IoasMap, IoasMapFile, IoasUnmap, IommuOption, MockDevice};

use super::{Outcome, Player, Slot, argument, number};
use crate::Core;

/// A call of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IommufdCall {
    /// [`Iommufd::ioas_alloc`](crate::contract::Iommufd::ioas_alloc)
    Alloc(u32),
    /// [`Iommufd::iommu_destroy`](crate::contract::Iommufd::iommu_destroy)
    Destroy(u32),
    /// [`Iommufd::ioas_map`](crate::contract::Iommufd::ioas_map)
    Map(IoasMap),
    /// [`Iommufd::ioas_map_file`](crate::contract::Iommufd::ioas_map_file) of a file.
    MapFile(Slot, IoasMapFile),
    /// [`Iommufd::ioas_unmap`](crate::contract::Iommufd::ioas_unmap)
    Unmap(IoasUnmap),
    /// [`Iommufd::iommu_option`](crate::contract::Iommufd::iommu_option)
    Option(IommuOption),
    /// [`Iommufd::bind_iommufd`](crate::contract::Iommufd::bind_iommufd), with `argsz`, flags and
    /// the iommufd. The token is that of no device.
    Bind(u32, u32, Slot),
    /// [`Iommufd::attach_pt`](crate::contract::Iommufd::attach_pt)
    Attach(AttachPt),
    /// [`Iommufd::detach_pt`](crate::contract::Iommufd::detach_pt)
    Detach(AttachPt),
    /// [`Iommufd::mock_attach`](crate::contract::Iommufd::mock_attach)
    MockAttach(u32),
    /// [`Iommufd::mock_replace`](crate::contract::Iommufd::mock_replace), with the mock device and
    /// the object.
    MockReplace(u32, u32),
    /// [`Iommufd::hot_reset_info`](crate::contract::Iommufd::hot_reset_info), with `argsz`.
    HotResetInfo(u32),
    /// [`Iommufd::hot_reset`](crate::contract::Iommufd::hot_reset)
    HotReset(Vec<Slot>),
    /// [`Iommufd::request`](crate::contract::Iommufd::request)
    Request(u32, Vec<u8>),
}

impl<C: Core> Player<'_, C> {
    pub(super) fn iommufd(&mut self, slot: Slot, call: &IommufdCall) -> io::Result<Outcome> {
        let fd = self.fd(slot);
        match call {
            IommufdCall::Alloc(flags) => self.core.ioas_alloc(fd, *flags).map(number),
            IommufdCall::Map(map) => self.core.ioas_map(fd, map).map(Outcome::Number),
            IommufdCall::MapFile(file, map) => {
                let map = IoasMapFile { file: self.fd(*file), ..*map };
                self.core.ioas_map_file(fd, &map).map(Outcome::Number)
            }
            IommufdCall::Unmap(unmap) => self.core.ioas_unmap(fd, unmap).map(Outcome::Number),
            IommufdCall::Option(option) => self.core.iommu_option(fd, option).map(Outcome::Number),
            IommufdCall::Bind(argsz, flags, iommufd) => {
                let (argsz, flags, iommufd) = (*argsz, *flags, self.fd(*iommufd));
                let bind = BindIommufd { argsz, flags, iommufd, token: [7; 16] };
                self.core.bind_iommufd(fd, &bind).map(number)
            }
            IommufdCall::Attach(attach) => self.core.attach_pt(fd, attach).map(number),
            IommufdCall::MockAttach(id) => self.core.mock_attach(fd, *id).map(numbers),
            IommufdCall::MockReplace(mock, id) => {
                self.core.mock_replace(fd, *mock, *id).map(number)
            }
            IommufdCall::Destroy(id) => self.core.iommu_destroy(fd, *id).map(done),
            IommufdCall::Detach(detach) => self.core.detach_pt(fd, detach).map(done),
            IommufdCall::HotResetInfo(argsz) => {
                let mut buffer = argument(*argsz, 0);
                let result = self.core.hot_reset_info(fd, &mut buffer);
                Ok(reply(result, buffer))
            }
            IommufdCall::HotReset(groups) => {
                let groups: Vec<_> = groups.iter().map(|group| self.fd(*group)).collect();
                self.core.hot_reset(fd, &groups).map(done)
            }
            IommufdCall::Request(number, bytes) => {
                let mut bytes = bytes.clone();
                let result = self.core.request(fd, *number, &mut bytes);
                Ok(reply(result, bytes))
            }
        }
    }
}

/// The three numbers of a mock device as one.
fn numbers(device: MockDevice) -> Outcome {
    let MockDevice { mock, page_table, device } = device;
    let word = |number: u32, place: u32| u64::from(number) << place;
    Outcome::Number(word(mock, 0) | word(page_table, 20) | word(device, 40))
}

fn done((): ()) -> Outcome {
    Outcome::Done
}

/// The answer of a call that may write a reply even if it fails.
fn reply(result: io::Result<()>, bytes: Vec<u8>) -> Outcome {
    match result {
        Ok(()) => Outcome::Bytes(bytes),
        Err(error) => Outcome::Refused(error.raw_os_error().unwrap_or(0), bytes),
    }
}
