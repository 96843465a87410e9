package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// How long one probe connection, which never leaves the machine, may take to be
// made, and then to show up where it should: the kernel has it in the queue
// already.
const (
	dialTimeout   = 5 * time.Second
	acceptTimeout = time.Second
)

// skipped is the error of a probe that could not prove anything, which is not
// the same as having failed.
type skipped struct{ reason string }

func (s *skipped) Error() string { return s.reason }

// A prober tries the outbound rules of one family with a connection: it stands
// in for Envoy, which does not run yet.
type prober struct {
	settings iptables.Settings
	family   iptables.Family
	own      []netip.Prefix // the pod's addresses
	uid      uint32         // of this process
}

// probe calls an address outside the pod, takes the call itself at the outbound
// port, checks that the kernel still knows where it was meant to go, and returns
// that address. Nothing leaves the pod unless the rules do not work. The error is
// a *skipped when the pod has no way out, or its owner left out all there is.
func (p prober) probe(ctx context.Context) (netip.AddrPort, error) {
	targets := p.targets()
	if len(targets) == 0 {
		return netip.AddrPort{}, &skipped{fmt.Sprintf("the settings leave out user %d or every address", p.uid)}
	}
	listener, err := p.listen(ctx)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer listener.Close()
	for _, target := range targets {
		err := p.try(ctx, listener, target)
		// No route, or no address to send from: the call ends before any rule.
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL) {
			continue
		}
		return target, err
	}
	return netip.AddrPort{}, &skipped{fmt.Sprintf("no %s route leads out of the pod", p.family)}
}

// listen opens the outbound port where REDIRECT sends what the pod itself sends.
func (p prober) listen(ctx context.Context) (*net.TCPListener, error) {
	port := p.settings.OutboundPort
	if port == 0 {
		port = iptables.DefaultOutboundPort
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, p.network(), net.JoinHostPort(p.localhost(), strconv.Itoa(int(port))))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("port %d, which the proxy needs, is taken by a container that started before it: %w", port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for the probe connection: %w", err)
	}
	return listener.(*net.TCPListener), nil
}

// try is one call. The handshake ends before accept, so nothing runs beside it.
func (p prober) try(ctx context.Context, listener *net.TCPListener, target netip.AddrPort) error {
	dialer := net.Dialer{Timeout: dialTimeout}
	call, err := dialer.DialContext(ctx, p.network(), target.String())
	if err != nil {
		return fmt.Errorf("the rules were written, but a probe connection was not redirected, so something in this pod's network stands before them: %w", err)
	}
	defer call.Close()
	if err := listener.SetDeadline(time.Now().Add(acceptTimeout)); err != nil {
		return fmt.Errorf("set the probe's deadline: %w", err)
	}
	accepted, err := listener.AcceptTCP()
	if err != nil {
		return fmt.Errorf("the rules were written, but a probe connection reached %s instead of %s: %w", target, listener.Addr(), err)
	}
	defer func() { _ = accepted.Close() }()
	meant, err := originalDestination(accepted, p.family)
	if err != nil {
		return fmt.Errorf("ask where the probe connection was meant to go: %w; load the module nf_conntrack on the node", err)
	}
	if meant != target {
		return fmt.Errorf("the probe connection was meant for %s, but the kernel says %s", target, meant)
	}
	return nil
}

// targets are addresses outside the pod that must be redirected, the ones that
// surely belong to nobody first.
func (p prober) targets() []netip.AddrPort {
	hosts := []netip.Addr{netip.MustParseAddr("192.0.2.1")} // RFC 5737
	if p.family == iptables.IPv6 {
		hosts = []netip.Addr{netip.MustParseAddr("2001:db8::1")} // RFC 3849
	}
	for _, cidr := range slices.Concat(p.settings.IncludeOutboundCIDRs, p.own) {
		for host, n := cidr.Addr(), 0; n < 3 && cidr.Contains(host); host, n = host.Next(), n+1 {
			hosts = append(hosts, host)
		}
	}
	var targets []netip.AddrPort
	for _, host := range hosts {
		own := slices.ContainsFunc(p.own, func(c netip.Prefix) bool { return c.Addr() == host })
		if own || host.IsUnspecified() || host.Is6() != (p.family == iptables.IPv6) {
			continue
		}
		if target, ok := p.onSomePort(host); ok {
			targets = append(targets, target)
		}
	}
	return targets
}

// onSomePort adds the first port that is not left out.
func (p prober) onSomePort(host netip.Addr) (netip.AddrPort, bool) {
	for n := range len(p.settings.ExcludeOutboundPorts) + 1 {
		target := netip.AddrPortFrom(host, uint16(80+n))
		if p.settings.Redirects(target, p.uid) {
			return target, true
		}
	}
	return netip.AddrPort{}, false
}

func (p prober) network() string {
	if p.family == iptables.IPv6 {
		return "tcp6"
	}
	return "tcp4"
}

func (p prober) localhost() string {
	if p.family == iptables.IPv6 {
		return "::1"
	}
	return "127.0.0.1"
}

// originalDestination asks connection tracking for the address that the caller
// of a redirected connection wrote. The socket options fill in a sockaddr, for
// which x/sys has no call; two calls with an answer of the same length serve.
func originalDestination(conn syscall.Conn, family iptables.Family) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var dst netip.AddrPort
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if family == iptables.IPv6 {
			var answer *unix.IPv6MTUInfo
			if answer, optErr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, unix.SO_ORIGINAL_DST); optErr == nil {
				dst = netip.AddrPortFrom(netip.AddrFrom16(answer.Addr.Addr), networkOrder(answer.Addr.Port))
			}
			return
		}
		var answer *unix.IPv6Mreq
		if answer, optErr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); optErr == nil {
			// struct sockaddr_in: family, port and address, two, two and four bytes.
			b := answer.Multiaddr
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
		}
	})
	return dst, errors.Join(err, optErr)
}

// networkOrder reads a port that the kernel left in network byte order.
func networkOrder(port uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, port))
}
