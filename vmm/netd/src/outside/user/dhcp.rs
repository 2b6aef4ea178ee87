//! A DHCP server for the guests of a user-mode network (RFC 2131, the part that a client needs).
//!
//! The first machine gets the configured guest address, others the addresses after it. A lease
//! is a day; an address belongs to a MAC for as long as the switch runs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
    UdpRepr,
};

use crate::config::Subnet;

const LEASE_SECONDS: u32 = 24 * 3600;
/// Clients that get an address, at most (as many as machines on a switch).
const MAX_CLIENTS: usize = 64;

/// What became of a frame.
pub enum Answer {
    /// It is something else; the stack gets it.
    NotDhcp,
    /// It was for this server, and needs no answer.
    Ignored,
    Reply(Vec<u8>),
}

pub struct Server {
    subnet: Subnet,
    mac: EthernetAddress,
    leases: BTreeMap<EthernetAddress, Ipv4Addr>,
}

/// The DHCP message in a frame to port 67, if it is one.
fn message(frame: &[u8]) -> Option<&[u8]> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Udp || ip.frag_offset() != 0 || ip.more_frags() {
        return None;
    }
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    (udp.dst_port() == DHCP_SERVER_PORT).then(|| udp.payload())
}

impl Server {
    pub fn new(subnet: Subnet, mac: EthernetAddress) -> Server {
        Server {
            subnet,
            mac,
            leases: BTreeMap::new(),
        }
    }

    pub fn answer(&mut self, frame: &[u8]) -> Answer {
        let Some(message) = message(frame) else {
            return Answer::NotDhcp;
        };
        match self.reply(message) {
            Some(reply) => Answer::Reply(reply),
            None => Answer::Ignored,
        }
    }

    /// The client's address, chosen when it first asks.
    fn address(&mut self, client: EthernetAddress) -> Option<Ipv4Addr> {
        if let Some(address) = self.leases.get(&client) {
            return Some(*address);
        }
        if self.leases.len() >= MAX_CLIENTS {
            return None;
        }
        let last = self.subnet.gateway.to_bits() | !self.subnet.netmask().to_bits();
        let address = (self.subnet.guest.to_bits()..last)
            .map(Ipv4Addr::from_bits)
            .find(|at| {
                *at != self.subnet.gateway && !self.leases.values().any(|used| used == at)
            })?;
        self.leases.insert(client, address);
        Some(address)
    }

    fn reply(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let packet = DhcpPacket::new_checked(message).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let client = request.client_hardware_address;
        let address = self.address(client)?;
        let for_me = request
            .server_identifier
            .is_none_or(|id| id == self.subnet.gateway);
        let wanted = request
            .requested_ip
            .or(Some(request.client_ip).filter(|ip| !ip.is_unspecified()));
        let kind = match request.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request if !for_me => return None,
            DhcpMessageType::Request if wanted.is_none_or(|ip| ip == address) => {
                DhcpMessageType::Ack
            }
            DhcpMessageType::Request => DhcpMessageType::Nak,
            _ => return None,
        };
        let granted = kind != DhcpMessageType::Nak;
        let reply = DhcpRepr {
            message_type: kind,
            transaction_id: request.transaction_id,
            secs: 0,
            client_hardware_address: client,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: if granted {
                address
            } else {
                Ipv4Addr::UNSPECIFIED
            },
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: granted.then_some(self.subnet.gateway),
            subnet_mask: granted.then(|| self.subnet.netmask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(self.subnet.gateway),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: granted.then_some(LEASE_SECONDS),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        self.frame(&reply, client)
    }

    /// Wraps a reply. It goes to the client's MAC and the IP broadcast address, which a client
    /// without an address takes (RFC 2131 section 4.1).
    fn frame(&self, reply: &DhcpRepr<'_>, client: EthernetAddress) -> Option<Vec<u8>> {
        let mut body = vec![0; reply.buffer_len()];
        reply.emit(&mut DhcpPacket::new_unchecked(&mut body)).ok()?;
        let udp = UdpRepr {
            src_port: DHCP_SERVER_PORT,
            dst_port: DHCP_CLIENT_PORT,
        };
        let ip = Ipv4Repr {
            src_addr: self.subnet.gateway,
            dst_addr: Ipv4Addr::BROADCAST,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + body.len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: self.mac,
            dst_addr: client,
            ethertype: EthernetProtocol::Ipv4,
        };
        let sums = ChecksumCapabilities::default();
        let mut frame = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let mut outer = EthernetFrame::new_unchecked(&mut frame);
        ethernet.emit(&mut outer);
        let mut inner = Ipv4Packet::new_unchecked(outer.payload_mut());
        ip.emit(&mut inner, &sums);
        udp.emit(
            &mut UdpPacket::new_unchecked(inner.payload_mut()),
            &ip.src_addr.into(),
            &ip.dst_addr.into(),
            body.len(),
            |payload| payload.copy_from_slice(&body),
            &sums,
        );
        Some(frame)
    }
}

#[cfg(test)]
mod tests;
