//! Devices other than disks, networks and serial lines. Each trial moves data through the driver of
//! one kind of device, and reports what came of it; the test judges it.

mod can;
mod crypto;
mod screen;
mod sound;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::Report;
use nix::libc;
use nix::mount::{MsFlags, mount};
use sha2::{Digest as _, Sha256};

use crate::report;
use crate::system::{Error, read};

type Work = fn() -> Result<String, Error>;

/// The trials by name.
const ALL: &[(&str, Work)] = &[
    ("rng", rng),
    ("crypto", crypto::encrypt),
    ("share", share),
    ("port", port),
    ("watchdog", watchdog),
    ("can", can::send),
    ("sound", sound::play),
    ("turn-on", screen::turn_on),
    ("screen", screen::fill),
    ("ipmi", ipmi),
    ("microcode", microcode),
];

/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);

/// The work of the trial with this name.
pub fn named(name: &str) -> Option<&'static str> {
    ALL.iter().map(|(own, _)| *own).find(|own| *own == name)
}

/// Carries out a trial and reports its result.
pub fn run(name: &str) -> Result<(), Error> {
    let found = ALL.iter().find(|(own, _)| *own == name);
    let (_, work) = found.ok_or_else(|| Error::Plan(name.to_owned()))?;
    report::send(&Report::Trial { name: name.to_owned(), result: work()? });
    Ok(())
}

/// Reads random bytes by the kernel's current source.
fn rng() -> Result<String, Error> {
    let source = read("/sys/class/misc/hw_random/rng_current")?;
    let mut bytes = [0; 16];
    let mut file = open_read("/dev/hwrng")?;
    file.read_exact(&mut bytes).map_err(Error::file("read", "/dev/hwrng"))?;
    Ok(format!("{} {}", source.trim(), hex(&bytes)))
}

/// The hashes of the first MiB of each disk image in a folder of the host.
fn share() -> Result<String, Error> {
    const AT: &str = "/share";
    fs::create_dir_all(AT).map_err(Error::file("create", AT))?;
    let options = Some("trans=virtio,version=9p2000.L");
    let mounted = mount(Some("share"), AT, Some("9p"), MsFlags::MS_RDONLY, options);
    mounted.map_err(|errno| Error::file("mount", AT)(errno.into()))?;
    let hash = |path: &str| -> Result<String, Error> {
        let mut data = vec![0; 1 << 20];
        open_read(path)?.read_exact_at(&mut data, 0).map_err(Error::file("read", path))?;
        Ok(hex(&Sha256::digest(&data)))
    };
    let images = list(AT)?.into_iter().filter(|path| path.ends_with(".img"));
    Ok(images.map(|path| hash(&path)).collect::<Result<Vec<_>, _>>()?.join(" "))
}

/// Reads 1 KiB from a port of virtio-serial, and writes it back.
fn port() -> Result<String, Error> {
    let place = wait_for("/sys/class/virtio-ports", "vport")?;
    let path = place.replace("/sys/class/virtio-ports", "/dev");
    let mut file = open(&path)?;
    let mut bytes = [0; 1024];
    file.read_exact(&mut bytes).map_err(Error::file("read", &path))?;
    file.write_all(&bytes).map_err(Error::file("write", &path))?;
    Ok(hex(&Sha256::digest(bytes)))
}

/// Starts a watchdog and lets it expire.
fn watchdog() -> Result<String, Error> {
    const PATH: &str = "/dev/watchdog0";
    /// WDIOC_SETTIMEOUT (linux/watchdog.h).
    const SET_TIMEOUT: libc::c_ulong = 0xc004_5706;
    let mut seconds: libc::c_int = 2;
    let file = open(PATH)?;
    ioctl(&file, SET_TIMEOUT, &mut seconds).map_err(Error::file("set the time of", PATH))?;
    sleep(Duration::from_secs(5));
    Ok(format!("{seconds} s"))
}

/// What a baseboard management controller answers to Get Device ID.
fn ipmi() -> Result<String, Error> {
    let folder = wait_for("/sys/bus/platform/devices", "ipmi_bmc")?;
    let field = |name: &str| read(&format!("{folder}/{name}")).map(|text| text.trim().to_owned());
    Ok(format!("{} {}", field("ipmi_version")?, field("manufacturer_id")?))
}

/// Puts microcode of zeros where the driver of an Intel 82551 wants it: 134 dwords and three indices
/// (e100_request_firmware). QEMU's model ignores it. Debian's is not in the kernel's package.
fn microcode() -> Result<String, Error> {
    const FOLDER: &str = "/lib/firmware/e100";
    const SIZE: usize = 134 * 4 + 3;
    let path = format!("{FOLDER}/d102e_ucode.bin");
    fs::create_dir_all(FOLDER).map_err(Error::file("create", FOLDER))?;
    fs::write(&path, [0; SIZE]).map_err(Error::file("write", &path))?;
    Ok(format!("{SIZE} bytes"))
}

/// Waits for a file in `folder` whose name begins with `prefix`.
fn wait_for(folder: &'static str, prefix: &'static str) -> Result<String, Error> {
    let (begin, start) = (Instant::now(), format!("{folder}/{prefix}"));
    loop {
        let found = list(folder).unwrap_or_default();
        match found.into_iter().find(|path| path.starts_with(&start)) {
            Some(path) => return Ok(path),
            None if begin.elapsed() > PATIENCE => {
                return Err(Error::file("find", &start)(std::io::ErrorKind::NotFound.into()));
            }
            None => sleep(Duration::from_millis(10)),
        }
    }
}

/// The paths in a folder, sorted.
fn list(folder: &str) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?.flatten();
    let mut paths: Vec<_> =
        entries.map(|entry| entry.path().to_string_lossy().into_owned()).collect();
    paths.sort();
    Ok(paths)
}

fn open(path: &str) -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open(path).map_err(Error::file("open", path))
}

fn open_read(path: &str) -> Result<File, Error> {
    File::open(path).map_err(Error::file("open", path))
}

/// An ioctl that reads an int, and may change it.
fn ioctl(file: &File, request: libc::c_ulong, value: &mut libc::c_int) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the fd is open, and the ioctl reads and writes one int, which lives during the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut *value) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
