use super::*;
use crate::model::{ContentId, Place};
use proptest::prelude::*;

fn content() -> impl Strategy<Value = ContentId> {
    any::<[u8; 32]>().prop_map(ContentId::blake3)
}

fn chunk() -> impl Strategy<Value = ChunkRef> {
    (content(), content(), 1..=limits::PLAIN_MAX_BYTES, 0u64..(3 << 30), 0..limits::SEGMENT_MAX_FRAMES)
        .prop_map(|(id, segment, plain_len, offset, ordinal)| ChunkRef {
            id,
            plain_len,
            place: Place { segment, ordinal, offset, stored_len: plain_len },
        })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

fn told() -> impl Strategy<Value = Told> {
    let holder =
        (any::<[u8; 32]>(), address()).prop_map(|(node, address)| Holder { node: NodeId(node), address });
    (0u16..256, proptest::collection::vec(holder, 0..=HOLDERS_MAX), any::<u8>())
        .prop_map(|(index, holders, load)| Told { index, holders, load })
}

fn members() -> impl Strategy<Value = Vec<MemberRecord>> {
    let member = (
        proptest::collection::vec(any::<u8>(), 0..=MEMBERSHIP_MAX_BYTES),
        proptest::collection::vec(address(), 0..=CONTACT_MAX_ADDRESSES),
    )
        .prop_map(|(certificate, addresses)| MemberRecord { certificate, addresses });
    proptest::collection::vec(member, 0..6)
}

fn message() -> impl Strategy<Value = Message> {
    let request =
        (proptest::collection::vec(chunk(), 1..20), 0..3usize).prop_map(|(chunks, class)| Request {
            repository: "sw.example.org".parse().unwrap(),
            class: [Class::Read, Class::Prefetch, Class::Fill][class],
            chunks,
        });
    let document = || proptest::collection::vec(any::<u8>(), 0..500);
    prop_oneof![
        request.prop_map(Message::Request),
        (0u16..256).prop_map(Message::Withdraw),
        document().prop_map(|d| Message::News(News::Root(d))),
        document().prop_map(|d| Message::News(News::Card(d))),
        document().prop_map(|d| Message::News(News::Charter(d))),
        document().prop_map(|d| Message::News(News::Revocations(d))),
        document().prop_map(Message::Certificate),
        Just(Message::Renew),
        document().prop_map(|d| Message::Renewed(RenewReply::Granted {
            certificate: d,
            seed: Some(Secret([7; 32]))
        })),
        Just(Message::Renewed(RenewReply::TooLate { lapsed: UnixTime(7), grace_s: 9 })),
        Just(Message::AllNews),
        Just(Message::Members),
        (0u16..256, any::<u8>(), 0..=limits::PLAIN_MAX_BYTES)
            .prop_map(|(index, encoding, len)| Message::Data(DataHeader { index, encoding, len })),
        told().prop_map(Message::Wait),
        told().prop_map(Message::Busy),
        told().prop_map(Message::Missing),
        Just(Message::NewsAck),
        Just(Message::PossessionAck),
        proptest::collection::vec((content(), 0u32..4_096, any::<u64>()), 1..=POSSESSION_MAX_SLICES)
            .prop_map(|slices| Message::Possession(
                slices
                    .into_iter()
                    .map(|(segment, slice, parts)| SliceHeld { segment, slice, parts })
                    .collect()
            )),
        members().prop_map(Message::MemberList),
        Just(Message::Refused(RefusedBecause::Scope)),
        Just(Message::JoinRequest(JoinRequest { cell: "eu/a/r1".parse().unwrap() })),
        (document(), members()).prop_map(|(certificate, members)| Message::JoinReply(JoinReply::Granted {
            seed: None,
            certificate,
            members
        })),
        any::<u64>().prop_map(|at| Message::JoinReply(JoinReply::Expired { at: UnixTime(at) })),
        any::<[u8; 16]>().prop_map(|id| Message::JoinReply(JoinReply::Used { ticket: TicketId(id) })),
    ]
}

fn read(frame: &[u8]) -> Result<Option<Message>, WireError> {
    let header = Header::read(frame[..HEADER_BYTES].try_into().unwrap())?;
    assert_eq!(header.len, frame.len() - HEADER_BYTES);
    Message::from_body(header.kind, &frame[HEADER_BYTES..])
}

proptest! {
    #[test]
    fn every_message_survives_its_bytes(message in message()) {
        prop_assert_eq!(read(&message.to_frame().unwrap()).unwrap(), Some(message));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind in prop_oneof![0u8..40, any::<u8>()],
        body in proptest::collection::vec(any::<u8>(), 0..2_000),
    ) {
        if let Ok(Some(message)) = Message::from_body(kind, &body) {
            // What was understood is within bounds, so it can be said again.
            prop_assert!(message.to_frame().is_ok());
        }
    }

    #[test]
    fn a_cut_message_is_refused_and_a_prolonged_one_is_what_it_was(message in message(), cut in any::<prop::sample::Index>()) {
        let frame = message.to_frame().unwrap();
        let body = &frame[HEADER_BYTES..];
        if !body.is_empty() {
            prop_assert!(Message::from_body(frame[0], &body[..cut.index(body.len())]).is_err());
        }
        prop_assert_eq!(Message::from_body(frame[0], &[body, &[0]].concat()), Ok(Some(message)));
    }
}

fn good() -> ChunkRef {
    let segment = ContentId::of(b"segment");
    ChunkRef {
        id: ContentId::of(b"chunk"),
        plain_len: 100,
        place: Place { segment, ordinal: 3, offset: 5_000, stored_len: 90 },
    }
}

fn request(chunks: Vec<ChunkRef>) -> Request {
    Request { repository: "a".parse().unwrap(), class: Class::Read, chunks }
}

#[test]
fn a_request_out_of_bounds_is_refused_with_the_offending_value() {
    assert_eq!(request(vec![good(); REQUEST_MAX_CHUNKS]).check(), Ok(()));
    let place = good().place;
    let sha1 = ContentId::new(Algorithm::Sha1, &[0; 20]).unwrap();
    for (chunks, shown) in [
        (vec![], "0"),
        (vec![good(); REQUEST_MAX_CHUNKS + 1], "257"),
        (vec![ChunkRef { plain_len: 0, ..good() }], "0"),
        (vec![ChunkRef { plain_len: limits::PLAIN_MAX_BYTES + 1, ..good() }], "536870913"),
        (vec![good(), ChunkRef { id: sha1, ..good() }], "Sha1"),
        (vec![ChunkRef { place: Place { stored_len: u32::MAX, ..place }, ..good() }], "4294967295"),
        (vec![ChunkRef { place: Place { ordinal: u32::MAX, ..place }, ..good() }], "4294967295"),
        (vec![ChunkRef { place: Place { offset: u64::MAX, ..place }, ..good() }], "18446744073709551615"),
    ] {
        let request = request(chunks);
        let error = request.check().unwrap_err();
        assert!(error.to_string().contains(shown), "{error} does not show {shown}");
        // Whoever encodes past the check is found out when it is decoded.
        let frame = encode(REQUEST, &request).unwrap();
        assert_eq!(read(&frame).unwrap_err(), error);
    }
}

#[test]
fn a_length_is_refused_before_memory_is_taken_for_it() {
    let header = Header::read([REQUEST, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(
        header,
        Err(WireError::TooLong { kind: REQUEST, len: u64::from(u32::MAX), max: BODY_MAX_BYTES })
    );
    // A list that claims four thousand million elements in nine bytes.
    let claim = [0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3, 4];
    assert!(matches!(Message::from_body(MEMBER_LIST, &claim), Err(WireError::Malformed { .. })));
}

#[test]
fn an_unknown_type_is_skipped_and_an_unknown_encoding_refused() {
    assert_eq!(Message::from_body(200, b"whatever"), Ok(None));
    assert_eq!(Message::from_body(NEWS, &[NEWS_KINDS, 1, 2, 3]), Ok(None), "a newer kind of document");
    let known = Message::News(News::Card(vec![1])).to_frame().unwrap();
    assert_eq!(known[HEADER_BYTES], NEWS_KINDS - 1, "the last kind that is known");
    let later_kind = encode(TRUST, &(9u8, b"whatever".to_vec())).unwrap();
    assert_eq!(Message::from_body(TRUST, &later_kind[HEADER_BYTES..]), Ok(None));
    // A document of trust never comes as an ordinary one, which a node of version 1 would not skip.
    let disguised = encode(NEWS, &News::Charter(vec![1])).unwrap();
    assert_eq!(Message::from_body(NEWS, &disguised[HEADER_BYTES..]), Ok(None));
    let frame = Message::News(News::Revocations(vec![1])).to_frame().unwrap();
    assert_eq!(frame[0], TRUST);
    let header = DataHeader { index: 0, encoding: 1, len: 5 };
    assert!(header.encoding().unwrap_err().to_string().contains("is 1"));
    assert_eq!(DataHeader::plain(0, 5).encoding(), Ok(Encoding::Plain));
}

#[test]
fn possession_out_of_bounds_is_refused_with_the_offending_value() {
    let good = SliceHeld { segment: ContentId::of(b"segment"), slice: 7, parts: 1 };
    assert!(Message::Possession(vec![good; POSSESSION_MAX_SLICES]).to_frame().unwrap().len() < 4 << 10);
    let sha1 = ContentId::new(Algorithm::Sha1, &[0; 20]).unwrap();
    for (slices, shown) in [
        (vec![], "0"),
        (vec![good; POSSESSION_MAX_SLICES + 1], "65"),
        (vec![good, SliceHeld { slice: 4_096, ..good }], "4096"),
        (vec![SliceHeld { segment: sha1, ..good }], "Sha1"),
    ] {
        let error = Message::Possession(slices.clone()).to_frame().unwrap_err();
        assert!(error.to_string().contains(shown), "{error} does not show {shown}");
        assert_eq!(read(&encode(POSSESSION, &slices).unwrap()).unwrap_err(), error);
    }
}

#[test]
fn the_bytes_of_possession_are_pinned() {
    // Version 1 of the protocol: a change of these bytes is another message.
    let held = SliceHeld { segment: ContentId::blake3([5; 32]), slice: 300, parts: 3 };
    let frame = Message::Possession(vec![held]).to_frame().unwrap();
    let body = [&[1][..], &postcard::to_allocvec(&held.segment).unwrap(), &[0xac, 0x02, 3]].concat();
    assert_eq!(frame, [&[8, u8::try_from(body.len()).unwrap(), 0, 0, 0][..], &body].concat());
    assert_eq!(Message::PossessionAck.to_frame().unwrap(), [25, 0, 0, 0, 0]);
}

#[test]
fn the_largest_messages_fit_a_frame() {
    let record = MemberRecord {
        certificate: vec![7; MEMBERSHIP_MAX_BYTES],
        addresses: vec!["[2001:db8::ffff]:65535".parse().unwrap(); CONTACT_MAX_ADDRESSES],
    };
    assert!(Message::MemberList(vec![record; MEMBERS_PER_FRAME]).to_frame().is_ok());
    assert!(Message::Request(request(vec![good(); REQUEST_MAX_CHUNKS])).to_frame().is_ok());
    assert!(Message::News(News::Root(vec![1; limits::ROOT_MAX_BYTES])).to_frame().is_ok());
    assert!(Message::News(News::Root(vec![1; limits::ROOT_MAX_BYTES + 1])).to_frame().is_err());
}
