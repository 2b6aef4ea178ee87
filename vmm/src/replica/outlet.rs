//! The way out: carries out outputs that were released, in the order of their release.
//!
//! Nothing comes here before the Output Rule is met; a backup's outlet gets nothing. A halted
//! replica's outlet is shut: what still waits in it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use devices::{DiskRequest, Output};
use ftlog::View;
use wire::nbd::ExportName;

use super::clock::Monotonic;
use super::convert;
use super::lease::Lease;
use crate::link::{Console, ConsoleLine, DiskLink, NetLink, spawn};

/// How long the end of a replica waits for its outputs.
const DRAIN_MAX: Duration = Duration::from_secs(5);
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// What can leave.
#[derive(Debug)]
pub enum Release {
    /// The output with this number; an announcement or a request issued again has none.
    Output(Option<u64>, Output),
    /// A disk read, which is no output.
    Read(DiskRequest),
    /// Inbound frames up to `number` of a switch connection are safe in the log.
    Consumed { connection: u64, number: u64 },
    /// This replica won the view: from now on its disk requests belong to it.
    Claimed(View),
    /// This replica is live in the view: the switch takes its frames.
    Live(View),
    /// Everything released before has left.
    Drained(Sender<()>),
}

/// Where outputs go.
#[derive(Clone)]
pub struct Outside {
    pub net: Option<NetLink>,
    pub disk: Option<DiskLink>,
    /// The disk's export, but for the view.
    pub export: Option<ExportName>,
    pub serial: Console,
    pub virtio_console: Console,
}

/// A handle to the outlet's thread.
#[derive(Clone)]
pub struct Outlet {
    queue: Sender<Release>,
    outside: Outside,
    shut: Arc<AtomicBool>,
    lease: Arc<Lease>,
    /// Outputs with numbers below this have left.
    left: Arc<AtomicU64>,
    /// When the first frame left since the flag was armed; for the failover's timeline.
    watch: Arc<super::timeline::Timeline>,
}

impl Outlet {
    /// `clock` is the protocol's.
    pub fn start(
        outside: Outside,
        clock: Monotonic,
        watch: Arc<super::timeline::Timeline>,
    ) -> std::io::Result<Self> {
        // Bounded by what the protocol holds back and by what the guest has in flight.
        let (queue, released) = crossbeam_channel::unbounded();
        let outlet = Self {
            queue,
            outside,
            shut: Arc::default(),
            lease: Arc::new(Lease::new(clock)),
            left: Arc::default(),
            watch,
        };
        let worker = outlet.clone();
        spawn("outlet", move || worker.work(&released))?;
        Ok(outlet)
    }

    /// Lets one output leave. Never blocks.
    pub fn release(&self, release: Release) {
        // The worker ends only with the process.
        let _ = self.queue.send(release);
    }

    /// Outputs with numbers below this have left.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::SeqCst)
    }

    /// Outputs may leave until then, by the protocol's clock.
    pub fn lease(&self, until_ns: u64) {
        self.lease.set(until_ns);
    }

    /// A disk read: no output, so it does not wait for any acknowledgement.
    pub fn read(&self, request: DiskRequest) {
        self.release(Release::Read(request));
    }

    /// Drops whatever has not left yet, and everything from now on.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
        self.lease.end();
        if let Some(disk) = &self.outside.disk {
            disk.close();
        }
        if let Some(net) = &self.outside.net {
            net.close();
        }
    }

    /// Waits until everything that was released has left, and disk requests are answered; a server
    /// that does not answer is not waited for very long.
    pub fn drain(&self) {
        let (done, drained) = crossbeam_channel::bounded(1);
        self.release(Release::Drained(done));
        let _ = drained.recv_timeout(DRAIN_MAX);
        let begun = std::time::Instant::now();
        while let Some(disk) = &self.outside.disk
            && disk.in_flight() > 0
            && !self.shut.load(Ordering::SeqCst)
            && begun.elapsed() < DRAIN_MAX
        {
            std::thread::sleep(DRAIN_STEP);
        }
    }

    fn work(&self, released: &Receiver<Release>) {
        for release in released {
            let is_output = matches!(release, Release::Output(..));
            if (!is_output || self.lease.holds()) && !self.shut.load(Ordering::SeqCst) {
                self.carry_out(release);
            }
        }
    }

    fn carry_out(&self, release: Release) {
        match release {
            Release::Output(number, output) => {
                self.put_out(output);
                if let Some(number) = number {
                    self.left.store(number + 1, Ordering::SeqCst);
                }
            }
            Release::Read(request) => self.submit(request),
            Release::Drained(done) => drop(done.send(())),
            Release::Claimed(view) => self.reopen_disk(view),
            Release::Live(view) => {
                if let Some(net) = &self.outside.net {
                    net.go_live(view.number);
                }
            }
            Release::Consumed { connection, number } => {
                if let Some(net) = &self.outside.net {
                    net.consumed(connection, number);
                }
            }
        }
    }

    fn put_out(&self, output: Output) {
        match output {
            Output::NetTransmit(frame) => {
                if let Some(net) = &self.outside.net {
                    net.transmit(&frame);
                    self.watch.first_output();
                }
            }
            Output::Disk(request) => self.submit(request),
            Output::Console { port, bytes } => match convert::line(port) {
                ConsoleLine::Serial => self.outside.serial.put(&bytes),
                ConsoleLine::Virtio => self.outside.virtio_console.put(&bytes),
            },
            // The machine itself has carried these out.
            Output::Reset | Output::PowerOff | Output::Exit(_) => {}
        }
    }

    fn submit(&self, request: DiskRequest) {
        if let Some(disk) = &self.outside.disk {
            disk.submit(request);
        }
    }

    fn reopen_disk(&self, view: View) {
        let (Some(disk), Some(export)) = (&self.outside.disk, &self.outside.export) else {
            return;
        };
        let mut export = export.clone();
        if let Some(tag) = &mut export.view {
            tag.view = view.number;
        }
        disk.reopen(export);
    }
}
