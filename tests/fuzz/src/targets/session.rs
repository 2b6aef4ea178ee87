//! One end of a connection plays back an input to a server's session at the other end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Sends `input`, says that nothing more comes, and takes what is answered until the session ends.
/// Returns the first bytes of it, 64 KiB at most.
pub fn play(input: &[u8], serve: impl FnOnce(TcpStream) + Send) -> Vec<u8> {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    // The sessions take TCP streams and use nothing that only TCP has.
    let far = TcpStream::from(OwnedFd::from(far));
    let answers = near.try_clone().expect("a second handle of a socket");
    std::thread::scope(|scope| {
        scope.spawn(|| serve(far));
        let reader = scope.spawn(move || take(answers));
        send(near, input);
        reader.join().unwrap_or_default()
    })
}

/// A session that ends early does not take all of the input.
fn send(mut stream: UnixStream, input: &[u8]) {
    let _ = stream.write_all(input);
    let _ = stream.shutdown(Shutdown::Write);
}

fn take(mut stream: impl Read) -> Vec<u8> {
    let mut first = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        let room = buffer.len() - first.len();
        first.extend_from_slice(&buffer[..len.min(room)]);
    }
    first
}
