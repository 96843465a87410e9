//go:build netns

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// Addresses of the tests' small world: a pod, and a peer that owns everything
// else, so that whatever leaves the pod without redirection arrives there.
const (
	podIPv4, podIPv6   = "10.99.0.2", "fd99::2"
	peerIPv4, peerIPv6 = "10.99.0.1", "fd99::1"
)

// connectTimeout is generous; a connection that fails is a failure of the test.
const connectTimeout = 10 * time.Second

// A world is a pod's network namespace joined to a peer's, with servers in both.
// Each server tells a caller its name and the address that the caller meant.
type world struct {
	t         *testing.T
	pod, peer string // names of namespaces
}

// newWorld makes the two namespaces. IPv6 is left out when the pod shall not
// have it.
func newWorld(t *testing.T, withIPv6 bool) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("tests with the build tag netns make network namespaces and need root")
	}
	w := &world{
		t:    t,
		pod:  fmt.Sprintf("outrigger-%d-pod", os.Getpid()),
		peer: fmt.Sprintf("outrigger-%d-peer", os.Getpid()),
	}
	for _, name := range []string{w.pod, w.peer} {
		w.ip("netns", "add", name)
		t.Cleanup(func() { w.ip("netns", "delete", name) })
		w.ip("-n", name, "link", "set", "lo", "up")
	}
	w.ip("-n", w.pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", w.peer)
	w.ip("-n", w.pod, "link", "set", "eth0", "up")
	w.ip("-n", w.peer, "link", "set", "eth0", "up")
	w.ip("-n", w.pod, "address", "add", podIPv4+"/24", "dev", "eth0")
	w.ip("-n", w.peer, "address", "add", peerIPv4+"/24", "dev", "eth0")
	w.ip("-n", w.pod, "route", "add", "default", "via", peerIPv4)
	// The peer answers at every address.
	w.ip("-n", w.peer, "route", "add", "local", "0.0.0.0/0", "dev", "lo")
	w.ip("-n", w.peer, "route", "add", podIPv4, "dev", "eth0", "table", "local")
	if withIPv6 {
		w.ip("-n", w.pod, "address", "add", podIPv6+"/64", "dev", "eth0", "nodad")
		w.ip("-n", w.peer, "address", "add", peerIPv6+"/64", "dev", "eth0", "nodad")
		w.ip("-n", w.pod, "-6", "route", "add", "default", "via", peerIPv6)
		w.ip("-n", w.peer, "-6", "route", "add", "local", "2001:db8::/32", "dev", "lo")
		w.ip("-n", w.peer, "-6", "route", "add", "local", "fd00:ec2::254", "dev", "lo")
	}
	return w
}

func (w *world) ip(args ...string) {
	w.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// as runs a function on a thread inside the namespace as the user, and waits. Sockets
// that it opens stay in the namespace and stay that user's. The thread ends with
// its goroutine, since it is never unlocked.
func (w *world) as(namespace string, uid uint32, do func()) {
	w.t.Helper()
	var err error
	var wait sync.WaitGroup
	wait.Go(func() {
		runtime.LockOSThread()
		var file *os.File
		if file, err = os.Open(filepath.Join("/run/netns", namespace)); err != nil {
			return
		}
		defer file.Close()
		if err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		if _, err = unix.SetfsuidRetUid(int(uid)); err != nil {
			return
		}
		do()
	})
	wait.Wait()
	if err != nil {
		w.t.Fatalf("enter network namespace %s: %v", namespace, err)
	}
}

// serve listens on the ports at all addresses of the namespace until the test
// ends. It answers with its name and the address that the caller meant.
func (w *world) serve(namespace, name string, ports ...uint16) {
	w.t.Helper()
	for _, port := range ports {
		for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
			w.serveAt(namespace, name, f, fmt.Sprintf(":%d", port))
		}
	}
}

// serveAt does what serve does at one address.
func (w *world) serveAt(namespace, name string, f iptables.Family, address string) {
	w.t.Helper()
	w.as(namespace, 1500, func() {
		listener, err := net.Listen(prober{family: f}.network(), address)
		if err != nil {
			w.t.Errorf("listen as %s: %v", name, err)
			return
		}
		var wait sync.WaitGroup
		wait.Go(func() { answer(listener, name, f) })
		w.t.Cleanup(func() { listener.Close(); wait.Wait() })
	})
}

// answer serves until the listener is closed.
func answer(listener net.Listener, name string, f iptables.Family) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		meant, err := originalDestination(conn.(*net.TCPConn), f)
		if errors.Is(err, unix.ENOENT) { // not tracked, so certainly not redirected
			meant, err = conn.LocalAddr().(*net.TCPAddr).AddrPort(), nil
		}
		if err != nil {
			fmt.Fprintf(conn, "%s: %v", name, err)
		} else {
			fmt.Fprintf(conn, "%s %s", name, meant)
		}
		conn.Close()
	}
}

// serveUDP answers every datagram to an address with "datagram".
func (w *world) serveUDP(namespace, address string) {
	w.t.Helper()
	w.as(namespace, 0, func() {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		if err != nil {
			w.t.Errorf("listen for datagrams: %v", err)
			return
		}
		var wait sync.WaitGroup
		wait.Go(func() {
			for {
				_, from, err := conn.ReadFromUDPAddrPort(make([]byte, 1))
				if err != nil {
					return
				}
				if _, err := conn.WriteToUDPAddrPort([]byte("datagram"), from); err != nil {
					return
				}
			}
		})
		w.t.Cleanup(func() { conn.Close(); wait.Wait() })
	})
}

// echo sends an ICMP echo request as ping does, and returns an error unless the
// address answers.
func (w *world) echo(namespace, to string) error {
	w.t.Helper()
	request := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	network, answer := "ip4:icmp", byte(0)
	if netip.MustParseAddr(to).Is6() {
		request[0], network, answer = 128, "ip6:ipv6-icmp", 129 // the kernel fills in the sum
	} else {
		binary.BigEndian.PutUint16(request[2:], ^uint16(0x0800+0x0001+0x0001))
	}
	var err error
	w.as(namespace, 0, func() {
		var conn net.Conn
		if conn, err = net.Dial(network, to); err != nil {
			return
		}
		defer conn.Close()
		if err = conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
			return
		}
		if _, err = conn.Write(request); err != nil {
			return
		}
		reply := make([]byte, 64)
		for err == nil && reply[0] != answer { // other messages come here too
			_, err = conn.Read(reply)
		}
	})
	return err
}

// A call is one connection of a test.
type call struct {
	from   string // namespace
	uid    uint32
	source string // address to bind to; may be empty
	to     string // address and port
	udp    bool
}

// make calls and returns what the server that took the call says, or the error.
func (w *world) call(c call) string {
	w.t.Helper()
	reply := make([]byte, 200)
	n := 0
	var err error
	w.as(c.from, c.uid, func() {
		dialer := net.Dialer{Timeout: connectTimeout}
		network := "tcp"
		if c.udp {
			network = "udp"
		}
		if c.source != "" {
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(c.source)}
		}
		var conn net.Conn
		if conn, err = dialer.Dial(network, c.to); err != nil {
			return
		}
		defer conn.Close()
		if err = conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
			return
		}
		if c.udp {
			if _, err = conn.Write([]byte("?")); err != nil {
				return
			}
		}
		n, err = conn.Read(reply)
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	return string(reply[:n])
}

// A result is what a run of outrigger-init left behind.
type result struct {
	code           int
	stdout, stderr string
}

// A container is how outrigger-init is run: as the injected one, in the pod.
type container struct {
	binary       string
	path         string   // PATH; where the iptables tools are
	capabilities []string // setpriv's names
}

// outriggerInit runs the real program in the pod as user 0, with no more than
// the container's capabilities and with a /run that cannot be written.
func (w *world) outriggerInit(ctx context.Context, c container, args ...string) result {
	w.t.Helper()
	bounding := "-all"
	for _, capability := range c.capabilities {
		bounding += ",+" + capability
	}
	script := `mount -t tmpfs -o ro none /run && PATH="$0" && export PATH && exec "$@"`
	command := append([]string{
		"netns", "exec", w.pod, "sh", "-c", script, c.path,
		tool(w.t, "setpriv"), "--bounding-set=" + bounding, c.binary,
	}, args...)
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "ip", command...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("run outrigger-init: %v", err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// counters and comments of a dump, which differ from one moment to the next.
var passing = regexp.MustCompile(`(?m) \[\d+:\d+\]$|^#.*\n`)

// saved is what the tools of the flavour see in the pod, in both families. The
// other flavour is not asked, since asking makes its tables.
func (w *world) saved(kind flavour) string {
	w.t.Helper()
	var all strings.Builder
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		out, err := exec.Command("ip", "netns", "exec", w.pod, tables{f, kind}.tool("save"), "-t", "nat").Output()
		if err != nil {
			w.t.Fatalf("dump the %s rules: %v", f, err)
		}
		fmt.Fprintf(&all, "%s\n%s", f, passing.ReplaceAll(out, nil))
	}
	return all.String()
}

// build compiles outrigger-init as it is released.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "outrigger-init")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build outrigger-init: %v\n%s", err, out)
	}
	return binary
}

// toolsOf makes a folder with the iptables tools of one flavour, or none, to be
// the PATH of a container.
func toolsOf(t *testing.T, flavours ...flavour) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range flavours {
		for _, family := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
			for _, action := range []string{"save", "restore"} {
				name := tables{family, f}.tool(action)
				if err := os.Symlink(tool(t, name), filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return dir
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: these tests need iptables and util-linux", err)
	}
	return path
}

// address joins for the family; each test story is told in both.
func address(v4, v6 string, f iptables.Family, port uint16) string {
	host := v4
	if f == iptables.IPv6 {
		host = v6
	}
	return netip.AddrPortFrom(netip.MustParseAddr(host), port).String()
}
