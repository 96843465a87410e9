//go:build netns

package agent

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// The pod of these tests. inPod in the environment makes the test binary what
// runs there, as the proxy's user, and holds the address to be used.
const (
	podIPv4, podIPv6 = "10.98.0.2", "fd98::2"
	inPod            = "OUTRIGGER_TEST_IN_POD"
)

// TestProbesInPod probes an application behind the real redirect rules, from the
// proxy's user, at the pod's own address.
func TestProbesInPod(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("tests with the build tag netns make network namespaces and need root")
	}
	name := fmt.Sprintf("outrigger-agent-%d", os.Getpid())
	run(t, "", "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "", "ip", "netns", "delete", name) })
	for _, command := range []string{
		"link set lo up", "address add ::6/128 dev lo nodad",
		"link add eth0 type veth peer name peer0", "link set eth0 up", "link set peer0 up",
		"address add " + podIPv4 + "/24 dev eth0", "address add " + podIPv6 + "/64 dev eth0 nodad",
	} {
		run(t, "", "ip", append([]string{"-n", name}, strings.Fields(command)...)...)
	}
	in := func(command ...string) []string { return append([]string{"netns", "exec", name}, command...) }
	run(t, iptables.Rules(iptables.Settings{}, iptables.IPv4), "ip", in("iptables-restore", "--noflush")...)
	run(t, iptables.Rules(iptables.Settings{}, iptables.IPv6), "ip", in("ip6tables-restore", "--noflush")...)

	for family, address := range map[string]string{"IPv4": podIPv4, "IPv6": podIPv6} {
		t.Run(family, func(t *testing.T) {
			binary, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			command := exec.CommandContext(t.Context(), "ip", in("setpriv", "--reuid", strconv.Itoa(bootstrap.ProxyUID), "--clear-groups",
				binary, "-test.run", "^TestInPod$", "-test.v")...)
			command.Dir = "/"
			command.Env = append(os.Environ(), inPod+"="+address)
			command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := command.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestInPod") {
				t.Errorf("in the pod: %v\n%s", err, out)
			}
		})
	}
}

func run(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	command := exec.Command(name, args...)
	command.Stdin = strings.NewReader(stdin)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestInPod is the part of TestProbesInPod that runs in the pod. By itself it has
// nothing to test.
func TestInPod(t *testing.T) {
	address := os.Getenv(inPod)
	if address == "" {
		return
	}
	pod := netip.MustParseAddr(address)
	// Where the rules send what is not the agent's.
	envoy := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })}
	l := listenAt(t, ":"+strconv.Itoa(bootstrap.InboundPort))
	go func() { _ = envoy.Serve(l) }()
	t.Cleanup(func() { envoy.Close() })

	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		want(w, host, source(pod).String())
	}))
	app.Listener = listenAt(t, net.JoinHostPort(address, "0")) // not on loopback, as some applications
	app.Start()
	t.Cleanup(app.Close)
	appPort := port(t, app.Listener.Addr())

	p := newProber([]bootstrap.Probe{
		{Path: "/http", HTTP: &bootstrap.HTTPProbe{Port: appPort}},
		{Path: "/tcp", TCP: &bootstrap.TCPProbe{Port: appPort}},
		{Path: "/closed", TCP: &bootstrap.TCPProbe{Port: 9}},
	}, pod)
	for path, want := range map[string]int{"/http": 200, "/tcp": 200, "/closed": 503} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s: got %d %s; want %d", path, w.Code, w.Body, want)
		}
	}

	// The same call without the agent's source address goes to Envoy: it is the
	// address that makes the difference.
	response, err := http.Get("http://" + net.JoinHostPort(address, strconv.Itoa(int(appPort))))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusTeapot {
		t.Errorf("without the source address: got %d; want Envoy's answer", response.StatusCode)
	}
}

func listenAt(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
