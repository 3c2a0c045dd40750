//! Mock devices of iommufd, which kernels with `CONFIG_IOMMUFD_TEST` attach on request
//! (drivers/iommu/iommufd/selftest.c). Their IOMMU has smaller pages and IOVAs than real ones.

use std::io;

use crate::address::PciAddress;
use crate::attach::Endpoint;
use crate::describe::Description;
use crate::errno::errno;
use crate::files::Fd;
use crate::kernel::Kernel;
use crate::objects::{Iommufd, Object};
use crate::process::Process;
use crate::state::System;

/// `MOCK_PAGE_SIZE`, and the IOVAs from `MOCK_APERTURE_START` to `MOCK_APERTURE_LAST`.
const PAGE_SIZE: u64 = 2048;
const APERTURE: std::ops::Range<u64> = 1 << 24..1 << 31;

/// The numbers of a mock device, for [`System::mock_attach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MockDevice {
    /// The mock object. Destroying it detaches the device.
    pub mock: u32,
    /// The page table.
    pub page_table: u32,
    /// The device, as a bind makes one.
    pub device: u32,
}

/// The host of the mock devices.
fn description(kernel: Kernel) -> Description {
    let mut mocked = Description::new(kernel);
    (mocked.page_sizes, mocked.first_iova) = (PAGE_SIZE, APERTURE.start);
    mocked.iova_ranges = vec![APERTURE];
    mocked
}

/// Each mock device has a group of its own.
fn endpoint(mock: u32, description: &Description) -> Endpoint<'_> {
    let [_, _, bus, devfn] = mock.to_be_bytes();
    let address = PciAddress::new(u32::MAX, bus, devfn);
    Endpoint { address, group: u32::MAX.wrapping_sub(mock), description }
}

impl System {
    /// `IOMMU_TEST_OP_MOCK_DOMAIN`: makes a mock device, and attaches it to an address space or a
    /// page table.
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the kernel has no mock devices ([`Description::mock_devices`]).
    /// - those of [`System::attach_pt`].
    pub fn mock_attach(&self, iommufd: Fd, id: u32) -> io::Result<MockDevice> {
        let mut state = self.state();
        let (iommufd, host, process) = state.iommufd(iommufd)?;
        let mocked = mocked(host)?;
        let mock = iommufd.add(Object::Mock { device: 0 });
        let device = iommufd.add(Object::Device);
        let attached = match id == mock {
            // The number is not in use before the call succeeds.
            true => Err(errno(libc::ENOENT)),
            false => iommufd.attach(endpoint(mock, &mocked), id, process),
        };
        match attached {
            Ok(page_table) => {
                iommufd.objects.insert(mock, Object::Mock { device });
                Ok(MockDevice { mock, page_table, device })
            }
            Err(error) => {
                iommufd.objects.remove(&device);
                iommufd.objects.remove(&mock);
                Err(error)
            }
        }
    }

    /// `IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE`: moves a mock device: the number of the page table.
    ///
    /// # Errors
    ///
    /// - `ENOTTY`: the kernel has no mock devices.
    /// - `ENOENT`: there is no such mock device.
    /// - those of [`System::attach_pt`].
    pub fn mock_replace(&self, iommufd: Fd, mock: u32, id: u32) -> io::Result<u32> {
        let mut state = self.state();
        let (iommufd, host, process) = state.iommufd(iommufd)?;
        let mocked = mocked(host)?;
        match iommufd.objects.get(&mock) {
            Some(Object::Mock { .. }) => iommufd.attach(endpoint(mock, &mocked), id, process),
            _ => Err(errno(libc::ENOENT)),
        }
    }
}

fn mocked(host: &Description) -> io::Result<Description> {
    match host.mock_devices {
        true => Ok(description(host.kernel)),
        false => Err(errno(libc::ENOTTY)),
    }
}

impl Iommufd {
    /// `iommufd_selftest_destroy`.
    pub fn remove_mock(&mut self, mock: u32, device: u32, kernel: Kernel, process: &mut Process) {
        self.detach(endpoint(mock, &description(kernel)), process);
        self.objects.remove(&device);
        self.objects.remove(&mock);
    }
}
