//! Network interfaces: sends and receives Ethernet frames without the network stack.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::system::{Error, read};

/// The sysfs folder of network interfaces.
const NET: &str = "/sys/class/net";
/// IFF_UP (linux/if.h).
const UP: &str = "0x1";
/// How long the link may take to come up.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER_TIMEOUT: TimeVal = TimeVal::new(1, 0);

/// IPv4 addresses on QEMU's user network: the guest's and the router's.
const OURS: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];

/// The start of an ARP message (RFC 826): Ethernet, IPv4, addresses of 6 and 4 bytes, operation.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
const ETHERTYPE_ARP: [u8; 2] = [8, 6];

/// The interfaces of devices, in the order of their names.
pub fn interfaces() -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(NET).map_err(Error::file("list", NET))?;
    let names = entries.flatten().filter(|entry| entry.path().join("device").exists());
    let mut names: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// A raw socket on an interface that is up.
pub struct Wire {
    socket: OwnedFd,
    address: [u8; 6],
}

impl Wire {
    /// Turns the interface on and waits for its link.
    pub fn open(interface: &str) -> Result<Self, Error> {
        let flags = format!("{NET}/{interface}/flags");
        fs::write(&flags, UP).map_err(Error::file("write", &flags))?;
        wait_for_link(interface)?;
        let failed = |what: &str| {
            let action = format!("{what} of {interface}");
            move |errno: nix::Error| Error::Net { action, errno }
        };
        let mut addresses =
            getifaddrs().map_err(failed("address"))?.filter(|it| it.interface_name == interface);
        let link = addresses.find_map(|it| it.address?.as_link_addr().copied());
        let link: LinkAddr = link.ok_or(nix::Error::ENODEV).map_err(failed("link address"))?;
        let address = link.addr().ok_or(nix::Error::ENODEV).map_err(failed("link address"))?;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
        let socket = socket.map_err(failed("packet socket"))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &ANSWER_TIMEOUT)
            .map_err(failed("time-out"))?;
        bind(socket.as_raw_fd(), &link).map_err(failed("bind"))?;
        Ok(Self { socket, address })
    }

    /// Sends an ARP request to the router; whether it answered.
    pub fn ask(&self) -> Result<bool, Error> {
        let failed =
            |action: &'static str| move |errno| Error::Net { action: action.to_owned(), errno };
        send(self.socket.as_raw_fd(), &request(self.address), MsgFlags::empty())
            .map_err(failed("send"))?;
        let mut frame = [0; 1600];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) if is_reply(frame.get(..length).unwrap_or_default()) => return Ok(true),
                // Another frame: wait for the answer.
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => return Ok(false),
                Err(errno) => return Err(failed("receive")(errno)),
            }
        }
    }
}

fn wait_for_link(interface: &str) -> Result<(), Error> {
    let carrier = format!("{NET}/{interface}/carrier");
    let begin = Instant::now();
    while read(&carrier)?.trim() != "1" {
        if begin.elapsed() > LINK_TIMEOUT {
            let action = format!("link of {interface}");
            return Err(Error::Net { action, errno: nix::Error::ENETDOWN });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn request(sender: [u8; 6]) -> Vec<u8> {
    let parts: [&[u8]; 8] =
        [&[0xff; 6], &sender, &ETHERTYPE_ARP, &ARP_REQUEST, &sender, &OURS, &[0; 6], &ROUTER];
    parts.concat()
}

/// Whether the frame is the router's ARP reply to the guest.
fn is_reply(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE_ARP)
        && frame.get(14..22) == Some(&ARP_REPLY)
        && frame.get(28..32) == Some(&ROUTER)
        && frame.get(38..42) == Some(&OURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_only_a_reply() {
        let mut frame = request([2; 6]);
        assert_eq!(frame.len(), 42);
        assert!(!is_reply(&frame));
        frame.splice(14..22, ARP_REPLY);
        frame.splice(28..32, ROUTER);
        frame.splice(38..42, OURS);
        assert!(is_reply(&frame));
        assert!(!is_reply(&frame[..41]));
    }
}
