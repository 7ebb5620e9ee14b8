//! The vsock device against the driver of a real guest.
//!
//! `BOXLITE_TEST_KERNEL` names the guest kernel, `BOXLITE_TEST_RAW_GUEST` the static `boxlite-raw-guest`. Every read and
//! write has a deadline, so a stall is a failure and not a hang.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use boxlite_raw_guest::{Checksum, Command};
use boxlite_tests::raw::{DEADLINE, DIALED_PORT, RawGuest, answer, drain, pour};

const MIB: u64 = 1 << 20;

fn ping(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, message);
    Ok(())
}

fn progress(guest: &RawGuest) -> u64 {
    let mut bytes = [0; 8];
    guest.command(Command::Progress, &[]).unwrap().read_exact(&mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

/// Waits until the guest's sources have written so much.
fn wait_for_progress(guest: &RawGuest, count: u64) {
    let start = Instant::now();
    while progress(guest) < count {
        assert!(start.elapsed() < DEADLINE, "the guest has written {} of {count} bytes", progress(guest));
    }
}

#[test]
fn a_gigabyte_each_way_on_sixteen_connections_arrives_whole_and_in_order() {
    let guest = RawGuest::boot(2);
    let expected = Checksum::of_pattern(64 * MIB);
    thread::scope(|scope| {
        for _ in 0..16 {
            let mut there = guest.command(Command::Echo, &[]).unwrap();
            let back = there.try_clone().unwrap();
            scope.spawn(move || {
                pour(&mut there, 64 * MIB).unwrap();
                there.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                let mut back = back;
                assert_eq!(drain(&mut back).unwrap(), expected);
            });
        }
    });
    guest.power_off();
}

#[test]
fn half_closing_either_direction_delivers_everything_and_then_the_end() {
    let guest = RawGuest::boot(1);
    for size in [0, 1, 4095, 4096, 65_537, 262_144, 3 * MIB + 1] {
        let expected = Checksum::of_pattern(size);

        // The host ends first; the guest answers after the end.
        let mut sink = guest.command(Command::Sink, &[]).unwrap();
        pour(&mut sink, size).unwrap();
        sink.shutdown(Shutdown::Write).unwrap();
        assert_eq!(answer(&mut sink).unwrap(), expected, "{size} bytes to the guest");
        assert_eq!(sink.read(&mut [0]).unwrap(), 0, "the guest has closed");

        // The guest ends first, and still takes what the host sends.
        let mut source = guest.command(Command::Source, &size.to_be_bytes()).unwrap();
        assert_eq!(drain(&mut source).unwrap(), expected, "{size} bytes from the guest");
        source.write_all(b"still open").unwrap();
    }
    guest.power_off();
}

#[test]
fn a_guest_that_closes_right_after_its_last_byte_loses_nothing() {
    let guest = RawGuest::boot(2);
    for size in [1, 100, 65_536, 262_145, 5 * MIB] {
        for _ in 0..5 {
            let mut stream = guest.command(Command::SourceAndClose, &size.to_be_bytes()).unwrap();
            assert_eq!(drain(&mut stream).unwrap(), Checksum::of_pattern(size), "{size} bytes");
        }
    }
    guest.power_off();
}

#[test]
fn what_a_guest_has_sent_arrives_though_guest_and_vmm_are_gone() {
    let mut guest = RawGuest::boot(1);
    // More than the host's socket takes, so that some of it is still with the device.
    let size = 400 << 10;
    let mut stream = guest.command(Command::SourceAndClose, &u64::to_be_bytes(size)).unwrap();
    wait_for_progress(&guest, size);
    guest.power_off_and_wait_for_qemu();
    assert_eq!(drain(&mut stream).unwrap(), Checksum::of_pattern(size));
}

#[test]
fn a_reader_that_does_not_read_stops_the_guest_and_nobody_else() {
    let guest = RawGuest::boot(2);
    let size = 64 * MIB;
    let mut lazy: Vec<_> =
        (0..4).map(|_| guest.command(Command::Source, &size.to_be_bytes()).unwrap()).collect();
    wait_for_progress(&guest, MIB);
    let mut other = guest.command(Command::Ping, &[]).unwrap();
    for _ in 0..500 {
        ping(&mut other, b"still here").unwrap();
    }
    // Four windows, four socket buffers and what is on its way; without a limit it would be many times that.
    let written = progress(&guest);
    assert!(written < 8 * MIB, "{written} bytes are buffered somewhere");
    let expected = Checksum::of_pattern(size);
    thread::scope(|scope| {
        for stream in &mut lazy {
            scope.spawn(|| assert_eq!(drain(stream).unwrap(), expected));
        }
    });
    guest.power_off();
}

#[test]
fn a_guest_that_does_not_read_stops_the_host_and_goes_on_later() {
    let guest = RawGuest::boot(2);
    // The guest reads what it has dialed only after it has written all of this, which nobody takes yet.
    let size = 8 * MIB;
    let mut argument = DIALED_PORT.to_be_bytes().to_vec();
    argument.extend(u64::to_be_bytes(size));
    let mut control = guest.command(Command::Dial, &argument).unwrap();
    let mut stream = guest.dialed().unwrap();
    control.read_exact(&mut [0; 4]).unwrap();

    let mut other = guest.command(Command::Ping, &[]).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut taken = 0u64;
    let mut full = 0;
    while full < 200 {
        match stream.write(&[0; 4096]) {
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                ping(&mut other, b"still here").unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        assert!(taken < 4 * MIB, "{taken} bytes are buffered somewhere");
    }
    stream.set_nonblocking(false).unwrap();
    assert_eq!(drain(&mut stream).unwrap(), Checksum::of_pattern(size));
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&mut control).unwrap().0, taken);
    guest.power_off();
}

#[test]
fn a_connection_to_a_guest_port_without_a_listener_is_closed() {
    let guest = RawGuest::boot(1);
    for _ in 0..20 {
        let mut stream = guest.connect_to_silence().unwrap();
        match stream.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    guest.power_off();
}

#[test]
fn a_client_that_goes_away_in_the_middle_disturbs_nobody() {
    let guest = RawGuest::boot(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut steady = guest.command(Command::Source, &u64::to_be_bytes(64 * MIB)).unwrap();
            assert_eq!(drain(&mut steady).unwrap(), Checksum::of_pattern(64 * MIB));
        });
        scope.spawn(|| {
            let mut steady = guest.command(Command::Sink, &[]).unwrap();
            pour(&mut steady, 64 * MIB).unwrap();
            steady.shutdown(Shutdown::Write).unwrap();
            assert_eq!(answer(&mut steady).unwrap(), Checksum::of_pattern(64 * MIB));
        });
        for _ in 0..50 {
            // Gone with data on its way from the guest, to the guest, and before the guest has answered.
            let mut stream = guest.command(Command::Source, &u64::to_be_bytes(64 * MIB)).unwrap();
            stream.read_exact(&mut [0; 1000]).unwrap();
            drop(stream);
            let mut stream = guest.command(Command::Echo, &[]).unwrap();
            pour(&mut stream, MIB / 8).unwrap();
            drop(stream);
            drop(guest.connect().unwrap());
        }
    });
    let mut stream = guest.command(Command::Ping, &[]).unwrap();
    ping(&mut stream, b"still here").unwrap();
    guest.power_off();
}

#[test]
fn five_hundred_connections_one_after_the_other_and_two_hundred_at_once_work() {
    let guest = RawGuest::boot(2);
    for number in 0..500u32 {
        let mut stream = guest.command(Command::Ping, &[]).unwrap();
        ping(&mut stream, &number.to_be_bytes()).unwrap();
    }
    let mut streams: Vec<_> = (0..200).map(|_| guest.command(Command::Ping, &[]).unwrap()).collect();
    for round in 0..5u32 {
        for stream in &mut streams {
            stream.write_all(&round.to_be_bytes()).unwrap();
        }
        for stream in &mut streams {
            let mut back = [0; 4];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, round.to_be_bytes());
        }
    }
    guest.power_off();
}

#[test]
fn a_guest_reaches_the_ports_that_it_was_given_and_no_other() {
    let guest = RawGuest::boot(1);
    let dial = |port: u32, count: u64| {
        let mut argument = port.to_be_bytes().to_vec();
        argument.extend(count.to_be_bytes());
        guest.command(Command::Dial, &argument).unwrap()
    };
    let error = |control: &mut UnixStream| {
        let mut number = [0; 4];
        control.read_exact(&mut number).unwrap();
        io::Error::from_raw_os_error(i32::from_be_bytes(number)).kind()
    };
    // Ports of nobody, and one that leads the other way.
    for port in [1, 1024, DIALED_PORT + 1, u32::MAX - 1] {
        assert_eq!(error(&mut dial(port, 0)), ErrorKind::ConnectionReset, "port {port}");
    }

    let mut control = dial(DIALED_PORT, 2 * MIB);
    let mut stream = guest.dialed().unwrap();
    control.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(drain(&mut stream).unwrap(), Checksum::of_pattern(2 * MIB));
    pour(&mut stream, 3 * MIB).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&mut control).unwrap(), Checksum::of_pattern(3 * MIB));
    guest.power_off();
}
