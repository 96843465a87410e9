//go:build integration

package local

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A world is a network namespace that a cluster is brought up in, so that it
// disturbs neither this machine nor a cluster on it.
type world struct {
	t       *testing.T
	config  Config
	program string // path of e2e/cluster
	netns   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config, err := Config{State: filepath.Join(t.TempDir(), "cluster")}.complete()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, config: config, program: filepath.Join(t.TempDir(), "cluster"), netns: fmt.Sprintf("outrigger-cluster-test-%d", os.Getpid())}
	w.must("go", "build", "-o", w.program, "..")
	w.must("ip", "netns", "add", w.netns)
	t.Cleanup(func() { w.must("ip", "netns", "delete", w.netns) })
	w.must("ip", "-netns", w.netns, "link", "set", "lo", "up")
	t.Cleanup(func() {
		if out, err := w.cluster("down"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	return w
}

// run runs a command and returns what it printed.
func (w *world) run(name string, args ...string) (string, error) {
	// Not bound to the test's context, which has ended when it is cleaned up.
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func (w *world) must(name string, args ...string) string {
	w.t.Helper()
	out, err := w.run(name, args...)
	if err != nil {
		w.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// inside runs a command in the world's network namespace only: the mounts that
// the cluster makes are to be seen by the next command.
func (w *world) inside(name string, args ...string) (string, error) {
	return w.run("nsenter", append([]string{"--net=/run/netns/" + w.netns, name}, args...)...)
}

func (w *world) cluster(args ...string) (string, error) {
	return w.inside(w.program, append(args, "--state", w.config.State)...)
}

func (w *world) mustCluster(args ...string) string {
	w.t.Helper()
	out, err := w.cluster(args...)
	if err != nil {
		w.t.Fatalf("cluster %s: %v\n%s", args[0], err, out)
	}
	w.t.Logf("cluster %s\n%s", args[0], out)
	return out
}

// kubectl calls the cluster as its administrator.
func (w *world) kubectl(args ...string) string {
	w.t.Helper()
	tools, err := w.config.build(w.t.Context(), "kubectl")
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := w.inside(tools["kubectl"], append([]string{"--kubeconfig", w.config.kubeconfig()}, args...)...)
	if err != nil {
		w.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (w *world) state() state {
	w.t.Helper()
	record, exists, err := w.config.loadState()
	if err != nil || !exists {
		w.t.Fatalf("got state %t, error %v, want a state", exists, err)
	}
	return record
}

// helloImage makes the archive of an image with testdata/hello.
func (w *world) helloImage() string {
	w.t.Helper()
	dir := w.t.TempDir()
	program, archive := filepath.Join(dir, "hello"), filepath.Join(dir, "hello.tar")
	if err := buildOnce(w.t.Context(), "testdata/hello", ".", program); err != nil {
		w.t.Fatal(err)
	}
	if err := imageOf(program, archive, "example.com/hello:1", v1.Config{Entrypoint: []string{"/hello"}}); err != nil {
		w.t.Fatal(err)
	}
	return archive
}

// TestLifecycle takes a cluster through its life, a violent death included.
func TestLifecycle(t *testing.T) {
	w := newWorld(t)
	image := w.helloImage()
	sysctls := w.sysctls()

	w.mustCluster("up")
	w.mustCluster("load", image)
	w.checkPods()

	before := w.state()
	w.mustCluster("up")
	if diff := cmp.Diff(before, w.state()); diff != "" {
		t.Errorf("up on a cluster that is up changed it (-before +after):\n%s", diff)
	}

	w.crash()
	if out, err := w.cluster("status"); err == nil || !strings.Contains(out, "not running: containerd, etcd") {
		t.Errorf("status after a crash: got error %v and\n%s", err, out)
	}
	w.mustCluster("up")
	w.mustCluster("status")
	if pods := w.kubectl("get", "pods"); !strings.Contains(pods, "No resources found") {
		t.Errorf("the new cluster knows pods of the old one:\n%s", pods)
	}
	w.mustCluster("load", image)
	w.checkPods()

	record := w.state()
	w.mustCluster("down")
	w.checkNothingLeft(record)
	if diff := cmp.Diff(sysctls, w.sysctls()); diff != "" {
		t.Errorf("sysctls (-before +after):\n%s", diff)
	}
	w.mustCluster("down")
}

// TestRebootedMachine shows that the record of a cluster that went with a
// reboot does not touch what has its numbers and settings today.
func TestRebootedMachine(t *testing.T) {
	w := newWorld(t)
	self, err := findProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	record := state{Boot: "another", Run: w.config.runFolder(), Cgroup: w.config.id(), Processes: []process{self}, Bridge: bridgeName, Tables: proxyTables()}
	if err := os.MkdirAll(filepath.Join(w.config.State, "kubelet", "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.config.saveState(record); err != nil {
		t.Fatal(err)
	}
	// Were the test's process taken for the recorded one, this would end it.
	w.mustCluster("down")
	w.checkNothingLeft(record)
}

func TestUpLeavesOthersAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		reason   string
		obstacle []string
		want     string
	}{
		"bridge": {
			reason:   "an interface of our name that we did not make is somebody's",
			obstacle: []string{"ip", "link", "add", bridgeName, "type", "bridge"},
			want:     "interface outrigger0 exists",
		},
		"kube-proxy": {
			reason:   "two of them would overwrite each other's rules",
			obstacle: []string{"nft", "add table ip kube-proxy"},
			want:     "another kube-proxy runs",
		},
		"addresses": {
			reason:   "a network that the machine is in must stay reachable",
			obstacle: []string{"ip", "address", "add", "10.213.4.5/8", "dev", "lo"},
			want:     "overlaps with 10.214.0.0/24",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if out, err := w.inside(tc.obstacle[0], tc.obstacle[1:]...); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			out, err := w.cluster("up")
			if err == nil || !strings.Contains(out, tc.want) {
				t.Errorf("%s: got error %v and\n%s\nwant it to say %q", tc.reason, err, out, tc.want)
			}
			if out, err := w.inside("nft", "list", "tables"); err != nil || strings.Contains(out, "outrigger") {
				t.Errorf("%s: got error %v and tables\n%s\nwant none of ours", tc.reason, err, out)
			}
		})
	}
}

// checkPods runs a pod and a Service and uses them in every way that tests of
// the mesh rely on.
func (w *world) checkPods() {
	w.t.Helper()
	w.kubectl("apply", "-f", "testdata/hello.yaml")
	w.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
	exec := func(args ...string) string {
		return w.kubectl(append([]string{"exec", "deployment/hello", "--", "/hello"}, args...)...)
	}
	if got := w.kubectl("logs", "deployment/hello"); got != "serving\n" {
		w.t.Errorf("logs: got %q", got)
	}
	// To itself through the Service too: the bridge sends it back on the port it came from.
	if got := exec("get", "http://hello.default.svc.cluster.local/"); !strings.HasPrefix(got, "hello ") {
		w.t.Errorf("GET from a pod by the Service's name: got %q", got)
	}
	if got := exec("lookup", "kubernetes.default"); !strings.Contains(got, apiIPv4) {
		w.t.Errorf("the API server's name is %q, want %s", got, apiIPv4)
	}
	if got := exec("lookup", "nowhere.example.com"); !strings.Contains(got, "no such host") {
		w.t.Errorf("a name outside of the cluster, where nobody can be asked: got %q", got)
	}
	hostPort := "http://" + bridgeIPv4 + ":18080/"
	if out, err := w.inside("curl", "--silent", "--show-error", "--max-time", "10", hostPort); err != nil || !strings.HasPrefix(out, "hello ") {
		w.t.Errorf("GET %s from the host: got error %v and %q", hostPort, err, out)
	}
}

// crash kills the cluster's processes and the containers' shims as the kernel
// would when memory runs out. The containers go on.
func (w *world) crash() {
	w.t.Helper()
	record := w.state()
	shims, err := processesWhere(func(args []string) bool { return slices.Contains(args, w.config.socket()) })
	if err != nil {
		w.t.Fatal(err)
	}
	if len(shims) < 2 {
		w.t.Fatalf("got shims %+v, want one for CoreDNS and one for hello at least", shims)
	}
	if err := kill(slices.Concat(record.Processes, shims)); err != nil {
		w.t.Fatal(err)
	}
	left, err := cgroupProcesses(record.Cgroup)
	if err != nil || len(left) == 0 {
		w.t.Fatalf("got processes %+v, error %v, want orphaned containers, or this is no crash", left, err)
	}
}

func (w *world) sysctls() map[string]string {
	values := map[string]string{}
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.bridge.bridge-nf-call-iptables"} {
		value, err := w.inside("sysctl", "--values", name)
		if err != nil {
			w.t.Fatalf("%v: %s", err, value)
		}
		values[name] = value
	}
	return values
}

// checkNothingLeft looks for everything that a cluster makes outside of its folder.
func (w *world) checkNothingLeft(record state) {
	w.t.Helper()
	for _, p := range record.Processes {
		if p.alive() && p.PID != os.Getpid() {
			w.t.Errorf("%s, process %d, still runs", p.Name, p.PID)
		}
	}
	running, err := processesWhere(func(args []string) bool {
		return slices.ContainsFunc(args, func(arg string) bool {
			return arg != w.config.State && strings.Contains(arg, w.config.State) || strings.Contains(arg, record.Run)
		})
	})
	if err != nil || len(running) > 0 {
		w.t.Errorf("processes: got %+v, error %v, want none", running, err)
	}
	mounts, err := mountPoints()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, mount := range mounts {
		if strings.HasPrefix(mount.path, w.config.State) || strings.HasPrefix(mount.path, record.Run) {
			w.t.Errorf("still mounted: %s", mount.path)
		}
	}
	folders, err := cgroupFolders(record.Cgroup)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, folder := range append(folders, record.Run, w.config.stateFile(), filepath.Join(w.config.State, "kubelet")) {
		if _, err := os.Lstat(folder); err == nil {
			w.t.Errorf("still there: %s", folder)
		}
	}
	for _, list := range [][]string{{"nft", "list", "ruleset"}, {"ip", "-brief", "link", "show", "type", "bridge"}, {"ip", "-brief", "link", "show", "type", "veth"}} {
		if out, err := w.inside(list[0], list[1:]...); err != nil || strings.TrimSpace(out) != "" {
			w.t.Errorf("%s: got error %v and\n%s\nwant nothing", strings.Join(list, " "), err, out)
		}
	}
}
