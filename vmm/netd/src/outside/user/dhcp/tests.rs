//! Tests of the DHCP server with a real client's state machine and with noise.

use proptest::prelude::*;

use super::*;

const CLIENT: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
const GATEWAY: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 9]);

fn server() -> Server {
    Server::new(Subnet::default(), GATEWAY)
}

fn request(kind: DhcpMessageType, client: EthernetAddress, wanted: Option<Ipv4Addr>) -> Vec<u8> {
    let repr = DhcpRepr {
        message_type: kind,
        transaction_id: 7,
        secs: 0,
        client_hardware_address: client,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: wanted,
        client_identifier: Some(client),
        server_identifier: None,
        parameter_request_list: Some(&[1, 3, 6]),
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut body = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut body))
        .unwrap();
    let udp = UdpRepr {
        src_port: DHCP_CLIENT_PORT,
        dst_port: DHCP_SERVER_PORT,
    };
    let ip = Ipv4Repr {
        src_addr: Ipv4Addr::UNSPECIFIED,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + body.len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: client,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let sums = ChecksumCapabilities::default();
    let mut frame = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
    let mut outer = EthernetFrame::new_unchecked(&mut frame);
    ethernet.emit(&mut outer);
    let mut inner = Ipv4Packet::new_unchecked(outer.payload_mut());
    ip.emit(&mut inner, &sums);
    let fill = |payload: &mut [u8]| payload.copy_from_slice(&body);
    let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
    let mut packet = UdpPacket::new_unchecked(inner.payload_mut());
    udp.emit(&mut packet, &from, &to, body.len(), fill, &sums);
    frame
}

/// The answer's kind, address and gateway.
fn ask(server: &mut Server, frame: &[u8]) -> Option<(DhcpMessageType, Ipv4Addr, Option<Ipv4Addr>)> {
    let Answer::Reply(reply) = server.answer(frame) else {
        return None;
    };
    let ethernet = EthernetFrame::new_checked(&reply[..]).unwrap();
    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
    assert!(ip.verify_checksum());
    let udp = UdpPacket::new_checked(ip.payload()).unwrap();
    let packet = DhcpPacket::new_checked(udp.payload()).unwrap();
    let repr = DhcpRepr::parse(&packet).unwrap();
    Some((repr.message_type, repr.your_ip, repr.router))
}

#[test]
fn a_client_gets_the_guest_address_and_keeps_it() {
    let (mut server, subnet) = (server(), Subnet::default());
    let discover = request(DhcpMessageType::Discover, CLIENT, None);
    let offer = (DhcpMessageType::Offer, subnet.guest, Some(subnet.gateway));
    assert_eq!(ask(&mut server, &discover), Some(offer));
    let wanted = request(DhcpMessageType::Request, CLIENT, Some(subnet.guest));
    let granted = (DhcpMessageType::Ack, subnet.guest, Some(subnet.gateway));
    assert_eq!(ask(&mut server, &wanted), Some(granted));
    let other = EthernetAddress([2, 0, 0, 0, 0, 2]);
    let second = request(DhcpMessageType::Discover, other, None);
    assert_eq!(
        ask(&mut server, &second).unwrap().1,
        Ipv4Addr::new(10, 0, 2, 16)
    );
    let greedy = request(DhcpMessageType::Request, other, Some(subnet.guest));
    assert_eq!(ask(&mut server, &greedy).unwrap().0, DhcpMessageType::Nak);
}

#[test]
fn addresses_run_out_without_harm() {
    let small = Subnet {
        prefix: 28,
        guest: Ipv4Addr::new(10, 0, 2, 12),
        ..Subnet::default()
    };
    let mut server = Server::new(small, GATEWAY);
    let granted = (0..10u8)
        .filter(|n| {
            let client = EthernetAddress([2, 0, 0, 0, 1, *n]);
            ask(
                &mut server,
                &request(DhcpMessageType::Discover, client, None),
            )
            .is_some()
        })
        .count();
    assert_eq!(granted, 3, "10.0.2.12 to 10.0.2.14");
}

proptest! {
    #[test]
    fn hostile_frames_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut server = server();
        server.answer(&noise);
        let mut frame = request(DhcpMessageType::Request, CLIENT, None);
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        server.answer(&frame[..cut.index(frame.len())]);
        server.answer(&frame);
    }
}
