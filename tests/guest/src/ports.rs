//! An I/O BAR: QEMU's test device (docs/specs/pci-testdev.rst). The device has numbered tests. The
//! header of a test states which byte to write at which offset, and counts the correct writes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use guest::Report;

use crate::pci;
use crate::registers::{Config, IO};
use crate::system::Error;

/// Vendor and device ID of the test device.
const ID: &str = "1b36:0005";
/// The I/O BAR.
const BAR: usize = 1;
/// The test without eventfds.
const TEST: u8 = 0;
/// Offsets of fields in the header of a test.
const OFFSET: u64 = 4;
const DATA: u64 = 8;
const COUNT: u64 = 12;
const NAME: u64 = 16;
const LONGEST_NAME: usize = 32;
const PATH: &str = "/dev/port";

/// Ports from a base on, accessed by bytes.
struct Ports {
    base: u64,
    file: File,
}

impl Ports {
    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut data = [0; N];
        let done = self.file.read_exact_at(&mut data, self.base.saturating_add(offset));
        done.map_err(Error::file("read", PATH))?;
        Ok(data)
    }

    fn write(&self, offset: u64, byte: u8) -> Result<(), Error> {
        self.file
            .write_all_at(&[byte], self.base.saturating_add(offset))
            .map_err(Error::file("write", PATH))
    }
}

/// Makes `times` correct writes.
pub fn work(times: u64) -> Result<Report, Error> {
    let found = pci::functions()?.into_iter().find(|function| function.id == ID);
    let missing = || Error::file("find", "a pci-testdev")(std::io::ErrorKind::NotFound.into());
    let config = Config::open(&found.ok_or_else(missing)?.address)?;
    config.set_command(IO, true)?;
    let (base, _) = config.bar(BAR)?;
    let file = OpenOptions::new().read(true).write(true).open(PATH);
    let ports = Ports { base, file: file.map_err(Error::file("open", PATH))? };
    ports.write(0, TEST)?;
    let name: [u8; LONGEST_NAME] = ports.read(NAME)?;
    let offset = u32::from_le_bytes(ports.read(OFFSET)?);
    let [data] = ports.read(DATA)?;
    for _ in 0..times {
        ports.write(offset.into(), data)?;
    }
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Report::Ports {
        name: String::from_utf8_lossy(name).into_owned(),
        count: u32::from_le_bytes(ports.read(COUNT)?),
    })
}
