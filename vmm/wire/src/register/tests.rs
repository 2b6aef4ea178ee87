//! Tests of the register's messages, and of a client that must not believe silence.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::line;

const VM: VmId = VmId([1; 16]);
const SHORT: Duration = Duration::from_millis(50);

/// A server that treats each connection in turn with the next of `acts`.
fn server(acts: Vec<fn(TcpStream)>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    let thread = std::thread::spawn(move || {
        for act in acts {
            act(listener.accept().expect("a client").0);
        }
    });
    (addr, thread)
}

fn hear(stream: &TcpStream) {
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .expect("a request");
}

fn say(mut stream: &TcpStream, text: &str) {
    // The client may have given up.
    let _ = writeln!(stream, "{text}");
}

const WON: &str = r#"{"answer":"won","view":{"number":2,"primary":2,"backup":null}}"#;
const LOST: &str = r#"{"answer":"lost","view":{"number":9,"primary":3,"backup":null}}"#;

#[test]
fn the_messages_have_the_documented_form() {
    let claim = Request::Claim {
        vm: VM,
        from_view: 1,
        claimant: ReplicaId(2),
    };
    let text = serde_json::to_string(&claim).unwrap();
    let expected =
        r#"{"op":"claim","vm":"01010101-0101-0101-0101-010101010101","from_view":1,"claimant":2}"#;
    assert_eq!(text, expected);
    let view = View {
        number: 2,
        primary: ReplicaId(2),
        backup: None,
    };
    assert_eq!(serde_json::to_string(&Response::Won { view }).unwrap(), WON);
    let foreign = r#"{"op":"claim","vm":"01","from_view":1,"claimant":2,"force":true}"#;
    assert!(serde_json::from_str::<Request>(foreign).is_err());
}

#[test]
fn silence_a_closed_door_and_nonsense_are_unknown() {
    let (addr, thread) = server(vec![
        |stream| {
            hear(&stream);
            // Until the client gives up.
            let _ = BufReader::new(&stream).read_line(&mut String::new());
        },
        drop,
        |stream| {
            hear(&stream);
            say(&stream, "no JSON");
        },
        |stream| {
            hear(&stream);
            say(&stream, r#"{"answer":"record","record":null}"#);
        },
        |stream| {
            hear(&stream);
            // Longer than a line may be, and without an end.
            let _ = (&stream).write_all(&vec![b' '; MAX_LINE + 2]);
        },
        |stream| {
            hear(&stream);
            say(&stream, r#"{"answer":"unavailable","reason":"disk full"}"#);
        },
    ]);
    let mut client = RegisterClient::new(addr, SHORT);
    let silent = client.claim(VM, 1, ReplicaId(2)).unwrap_err();
    assert!(
        silent.is_unknown() && silent.to_string().contains("50 ms"),
        "{silent}"
    );
    client.set_timeout(Duration::from_secs(20));
    for case in [
        "closed",
        "nonsense",
        "another answer",
        "too long",
        "unavailable",
    ] {
        let error = client.claim(VM, 1, ReplicaId(2)).unwrap_err();
        assert!(error.is_unknown(), "{case}: {error}");
    }
    thread.join().unwrap();
    let nobody = client.claim(VM, 1, ReplicaId(2)).unwrap_err();
    assert!(nobody.is_unknown(), "{nobody}");
}

#[test]
fn a_refusal_is_known() {
    let (addr, _thread) = server(vec![|stream| {
        hear(&stream);
        say(
            &stream,
            r#"{"answer":"refused","reason":"the machine is off"}"#,
        );
    }]);
    let error = RegisterClient::new(addr, Duration::from_secs(20))
        .off(VM, 1)
        .unwrap_err();
    assert!(
        !error.is_unknown() && error.to_string().contains("is off"),
        "{error}"
    );
}

/// The answer to the first question comes after the client has given it up. It must not be taken
/// for the answer to the second one.
#[test]
fn a_late_answer_answers_nothing_else() {
    let (addr, thread) = server(vec![
        |stream| {
            hear(&stream);
            // The client hangs up when it gives up; only then the answer comes.
            let _ = BufReader::new(&stream).read_line(&mut String::new());
            say(&stream, WON);
        },
        |stream| {
            hear(&stream);
            say(&stream, LOST);
        },
    ]);
    let mut client = RegisterClient::new(addr, SHORT);
    assert!(client.claim(VM, 1, ReplicaId(2)).unwrap_err().is_unknown());
    client.set_timeout(Duration::from_secs(20));
    let answer = client.claim(VM, 1, ReplicaId(2)).unwrap();
    assert!(matches!(answer, ClaimAnswer::Lost(view) if view.number == 9));
    thread.join().unwrap();
}

proptest! {
    #[test]
    fn hostile_lines_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = line::read_message::<Request>(&mut &bytes[..], 100);
        let _ = line::read_message::<Response>(&mut &bytes[..], 100);
    }

    #[test]
    fn lines_are_bounded(length in 0..400usize, ended: bool) {
        let mut bytes = vec![b'a'; length];
        if ended { bytes.push(b'\n'); }
        match line::read_line(&mut &bytes[..], 200) {
            Ok(Some(line)) => prop_assert!(ended && line.len() == length && length <= 200),
            Ok(None) => prop_assert!(!ended && length == 0),
            Err(line::LineError::TooLong { .. }) => prop_assert!(length > 200),
            Err(_) => prop_assert!(!ended && length > 0),
        }
    }
}
