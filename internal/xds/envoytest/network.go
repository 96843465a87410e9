package envoytest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// A Network is a switch that hosts are plugged into. It needs root.
type Network struct {
	bridge string // namespace
	hosts  int
}

// A Host is a network namespace with an interface of its own, as a pod has.
type Host struct {
	Name      string // of the namespace
	handle    *os.File
	Addresses []netip.Addr
}

// networks counts, so that names of one process do not meet.
var networks atomic.Int64 //nolint:gochecknoglobals // names are global to the kernel too

// NewNetwork makes a network until the test ends.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and must run as root: sudo -E go test")
	}
	n := &Network{bridge: fmt.Sprintf("ot%d-%d", os.Getpid(), networks.Add(1))}
	addNamespace(t, n.bridge)
	ip(t, "-n", n.bridge, "link", "add", "br0", "up", "type", "bridge")
	return n
}

// Host plugs a host in that reaches every address through its interface. The
// prefixes, such as 10.1.0.1/16, are its own.
func (n *Network) Host(t testing.TB, addresses ...string) *Host {
	t.Helper()
	n.hosts++
	h := &Host{Name: fmt.Sprintf("%s-%d", n.bridge, n.hosts)}
	addNamespace(t, h.Name)
	port := fmt.Sprintf("p%d", n.hosts)
	ip(t, "-n", n.bridge, "link", "add", port, "up", "master", "br0", "type", "veth", "peer", "name", "eth0", "netns", h.Name)
	ip(t, "-n", h.Name, "link", "set", "lo", "up")
	ip(t, "-n", h.Name, "link", "set", "eth0", "up")
	for _, a := range []netip.Addr{iptables.IPv6.Source(), iptables.IPv6.Own()} {
		ip(t, "-n", h.Name, "addr", "add", a.String()+"/128", "dev", "lo") // as outrigger-init does
	}
	for _, a := range addresses {
		ip(t, "-n", h.Name, "addr", "add", a, "dev", "eth0", "nodad")
		prefix := netip.MustParsePrefix(a)
		h.Addresses = append(h.Addresses, prefix.Addr())
		if len(h.Addresses) == 1 || prefix.Addr().Is6() {
			ip(t, "-n", h.Name, "route", "add", "default", "dev", "eth0", "src", prefix.Addr().String())
		}
	}
	handle, err := os.Open("/run/netns/" + h.Name)
	must(t, err)
	t.Cleanup(func() { _ = handle.Close() })
	h.handle = handle
	return h
}

// Redirect makes the host's traffic go through a sidecar.
func (h *Host) Redirect(t testing.TB) {
	t.Helper()
	for command, family := range map[string]iptables.Family{"iptables-restore": iptables.IPv4, "ip6tables-restore": iptables.IPv6} {
		cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", h.Name, command)
		cmd.Stdin = strings.NewReader(iptables.Rules(iptables.Settings{OwnAddresses: h.Addresses}, family))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
}

// Dial connects from the host. It has the form of [net.Dialer.DialContext].
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.inside(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the host until the test ends.
func (h *Host) Listen(t testing.TB, address string) net.Listener {
	t.Helper()
	var l net.Listener
	must(t, h.inside(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// inside runs f in the host's namespace. A socket stays where it was made.
func (h *Host) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		if err := unix.Setns(int(h.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", h.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func addNamespace(t testing.TB, name string) {
	t.Helper()
	ip(t, "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() }) //nolint:noctx // the test's context has ended
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
