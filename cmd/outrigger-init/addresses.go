package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// addresses returns the addresses of the pod, each with its network's length.
func addresses() ([]netip.Prefix, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	addrs := make([]netip.Prefix, 0, len(list))
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, prefix)
		}
	}
	return addrs, nil
}

// reachableByIPv6 tells whether others can talk to the pod by IPv6, or it to
// them. If so its rules are mandatory, or all of it would pass by the proxy.
func reachableByIPv6(addrs []netip.Prefix) bool {
	return slices.ContainsFunc(addrs, func(p netip.Prefix) bool {
		return isOwn(p.Addr()) && p.Addr().Is6()
	})
}

// isOwn reports whether others can talk to the pod at an address of its devices.
func isOwn(a netip.Addr) bool {
	// ::6 and ::7 are loopback in all but name once an earlier run has added them.
	return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.Is4In6() && a != iptables.IPv6.Source() && a != iptables.IPv6.Own()
}

// ownAddresses returns the addresses at which others reach the pod, in the order
// of its devices: where it has several, the cluster's network is the first.
func ownAddresses(addrs []netip.Prefix) []netip.Addr {
	var own []netip.Addr
	for _, p := range addrs {
		if isOwn(p.Addr()) {
			own = append(own, p.Addr())
		}
	}
	return own
}

// addToLoopback gives the address to the device lo, for in IPv6 only ::1 is
// there. Doing it twice does no harm.
func addToLoopback(addr netip.Addr) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return fmt.Errorf("find device lo: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open an IPv6 socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	request := struct { // struct in6_ifreq of linux/ipv6.h
		addr   [16]byte
		length uint32
		index  int32
	}{addr.As16(), 128, int32(lo.Index)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request)))
	if errno != 0 && !errors.Is(errno, unix.EEXIST) {
		return fmt.Errorf("give lo the address %s, by which the proxy reaches the application: %w; check net.ipv6.conf.lo.disable_ipv6", addr, errno)
	}
	return nil
}
