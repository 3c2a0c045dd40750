//! A frame on a CAN bus. The kernel gives a socket its own frame back after the controller has
//! reported by an interrupt that it sent the frame.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc::{self, c_int, c_void};

use super::hex;
use crate::system::{Error, read};

const INTERFACE: &str = "can0";
/// Bits in a second.
const BITRATE: u32 = 125_000;
/// IFLA_INFO_KIND, IFLA_INFO_DATA (linux/if_link.h) and IFLA_CAN_BITTIMING (linux/can/netlink.h).
const KIND: u16 = 1;
const DATA: u16 = 2;
const BIT_TIMING: u16 = 1;
const IFLA_LINKINFO: u16 = 18;
/// CAN_RAW_RECV_OWN_MSGS (linux/can/raw.h).
const OWN_MESSAGES: c_int = 4;
/// `struct can_frame`: identifier 0x123, 8 bytes of data.
const FRAME: [u8; 16] = [0x23, 1, 0, 0, 8, 0, 0, 0, 1, 2, 3, 5, 8, 13, 21, 34];

/// Sends a frame, and returns the frame that the kernel gives back.
pub fn send() -> Result<String, Error> {
    let index = read(&format!("/sys/class/net/{INTERFACE}/ifindex"))?;
    let index: c_int = index.trim().parse().unwrap_or_default();
    turn_on(index).map_err(Error::file("turn on", INTERFACE))?;
    exchange(index).map(|frame| hex(&frame)).map_err(Error::file("use", INTERFACE))
}

/// Sets the bit rate and turns the interface on, by one message of rtnetlink.
fn turn_on(index: c_int) -> io::Result<()> {
    // `struct can_bittiming`: the kernel computes what is zero.
    let timing = [BITRATE.to_ne_bytes().as_slice(), &[0; 28]].concat();
    let data = attribute(DATA, &attribute(BIT_TIMING, &timing));
    let info = [attribute(KIND, b"can\0"), data].concat();
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    // `struct ifinfomsg`: family and type, index, flags, and the mask of changed flags.
    let link = [[0; 4], index.to_ne_bytes(), up, up].concat();
    let body = [link, attribute(IFLA_LINKINFO, &info)].concat();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let length = u32::try_from(body.len().saturating_add(16)).unwrap_or_default();
    let kind = [libc::RTM_NEWLINK.to_ne_bytes(), flags.to_ne_bytes()].concat();
    let message = [&length.to_ne_bytes(), kind.as_slice(), &[0; 8], &body].concat();
    let socket = socket(libc::AF_NETLINK, libc::NETLINK_ROUTE)?;
    write(&socket, &message)?;
    // The answer is a header and an errno, which is zero on success.
    let mut answer = [0; 64];
    receive(&socket, &mut answer)?;
    let [.., e0, e1, e2, e3] = *answer.first_chunk::<20>().unwrap_or(&[0; 20]);
    match c_int::from_ne_bytes([e0, e1, e2, e3]) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
    }
}

/// An attribute of netlink: length, kind, value, and padding to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or_default();
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn exchange(index: c_int) -> io::Result<[u8; 16]> {
    let socket = socket(libc::AF_CAN, libc::CAN_RAW)?;
    set(&socket, libc::SOL_CAN_RAW, OWN_MESSAGES, &1_i32.to_ne_bytes())?;
    // `struct timeval`: an answer may take 5 s.
    let limit = [5_i64.to_ne_bytes(), [0; 8]].concat();
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit)?;
    // `struct sockaddr_can`: family, padding, index, and addresses of other protocols.
    let family = (libc::AF_CAN as u16).to_ne_bytes();
    let address = [family.as_slice(), &[0; 2], &index.to_ne_bytes(), &[0; 16]].concat();
    let size = libc::socklen_t::try_from(address.len()).unwrap_or_default();
    // SAFETY: the fd is open, and the kernel reads `size` bytes, which are there.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), size) } as isize)?;
    write(&socket, &FRAME)?;
    let mut frame = [0; 16];
    receive(&socket, &mut frame)?;
    Ok(frame)
}

fn socket(family: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call has no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW, protocol) };
    check(fd as isize)?;
    // SAFETY: the call returned a new fd, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(socket: &OwnedFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let size = libc::socklen_t::try_from(value.len()).unwrap_or_default();
    let value = value.as_ptr().cast::<c_void>();
    // SAFETY: the fd is open, and the kernel reads `size` bytes, which are there.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, size) } as isize)
}

fn write(socket: &OwnedFd, data: &[u8]) -> io::Result<()> {
    nix::unistd::write(socket, data).map(drop).map_err(io::Error::from)
}

fn receive(socket: &OwnedFd, data: &mut [u8]) -> io::Result<()> {
    nix::unistd::read(socket, data).map(drop).map_err(io::Error::from)
}

fn check(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
