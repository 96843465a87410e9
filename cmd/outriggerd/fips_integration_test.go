//go:build integration

package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const (
	// binaries in the environment makes the test binary what runs in a network
	// namespace, and holds the folder of the binaries that are tested.
	binaries = "OUTRIGGER_TEST_BINARIES"
	// approved in the environment forbids every algorithm that is not approved.
	approved = "GODEBUG=fips140=only"
	// podIP is the pod's address.
	podIP = "10.0.0.51"
)

// TestFIPS runs outriggerd and the agent of make build-fips, with every algorithm
// forbidden that is not approved, on a real API server: until outriggerd is ready, the
// API server has a pod injected, the pod's token is reviewed and its certificate signed,
// and a real Envoy has its configuration with that. All of it has a network namespace
// of its own, because Envoy listens where pods' do.
func TestFIPS(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test makes a network namespace and needs root")
	}
	makefile, err := os.ReadFile("../../Makefile")
	must(t, err)
	_, version, found := strings.Cut(string(makefile), "\nFIPS := ")
	if version, _, _ = strings.Cut(version, "\n"); !found || version == "" {
		t.Fatal("the Makefile does not say which module make build-fips uses")
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", ".", "../outrigger-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFIPS140="+version)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the binaries: %v\n%s", err, out)
	}
	for _, name := range []string{"outriggerd", "outrigger-agent"} {
		info, err := exec.CommandContext(t.Context(), "go", "version", "-m", filepath.Join(dir, name)).Output()
		if err != nil || !strings.Contains(string(info), "GOFIPS140="+version) {
			t.Fatalf("%s does not have the module: %v\n%s", name, err, info)
		}
	}
	envoy, err := envoybin.EnvoyBinary(t.Context()) // there is no network inside
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	command := exec.CommandContext(t.Context(), self, "-test.run", "^TestApproved$", "-test.v")
	command.Env = append(os.Environ(), binaries+"="+dir, "ENVOY="+envoy)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestApproved") {
		t.Fatalf("in the network namespace: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "Envoy's connection") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// TestApproved is the part of TestFIPS that runs in a network namespace. By itself it
// has nothing to test.
func TestApproved(t *testing.T) {
	dir := os.Getenv(binaries)
	if dir == "" {
		return
	}
	for _, command := range []string{"link set lo up", "address add " + serviceIP + "/32 dev lo", "address add " + podIP + "/32 dev lo"} {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", command, err, out)
		}
	}
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(server.Stop)
	m := newMesh(t, server)
	log := m.outriggerd(filepath.Join(dir, "outriggerd"), []string{approved}, "-webhook-address", serviceIP+":443")
	m.eventually("outriggerd is ready", func() error { return answers("http://127.0.0.1:9091/readyz") })

	pod := m.injected()
	state := t.TempDir()
	m.mount(pod, state)
	m.start(filepath.Join(dir, "outrigger-agent"), []string{
		approved, bootstrap.EnvPodNamespace + "=shop", bootstrap.EnvPodName + "=" + pod.Name, bootstrap.EnvPodUID + "=" + string(pod.UID),
		bootstrap.EnvServiceAccount + "=default", bootstrap.EnvPodIPs + "=" + podIP,
	}, "-state", state+"/state", "-token", state+"/token", "-trust", state+"/ca.crt", "-envoy", os.Getenv("ENVOY"), "proxy", settings(t, pod))
	m.eventually("the sidecar is ready", func() error { return answers("http://" + podIP + ":15020/ready") })

	var proxies []struct{ Proxy, Identity, TLS string }
	m.eventually("outriggerd serves the proxy", func() error {
		text, err := get("http://127.0.0.1:9092/debug/proxies")
		if err == nil {
			err = yaml.Unmarshal([]byte(text), &proxies)
		}
		if err == nil && len(proxies) != 1 {
			err = fmt.Errorf("it serves %v", proxies)
		}
		return err
	})
	if !strings.HasPrefix(proxies[0].TLS, "TLS 1.3 ") || !strings.HasPrefix(proxies[0].Proxy, "shop/"+pod.Name) {
		t.Errorf("it serves %+v", proxies[0])
	}
	t.Logf("Envoy's connection: %s", proxies[0].TLS)
	for curve, works := range map[tls.CurveID]bool{tls.X25519: false, tls.CurveP256: true} {
		conn, err := new(tls.Dialer{Config: &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2"}, CurvePreferences: []tls.CurveID{curve},
		}}).DialContext(t.Context(), "tcp", "127.0.0.1:15128")
		if (err == nil) != works {
			t.Errorf("a client that knows %s alone: %v", curve, err)
		}
		if err == nil {
			must(t, conn.Close())
		}
	}
	if text := log.String(); strings.Contains(text, "fips") {
		t.Errorf("outriggerd complains:\n%s", text)
	}
}

// injected makes a pod, once the API server has pods injected, and has it run.
func (m *meshOnAPIServer) injected() *corev1.Pod {
	m.t.Helper()
	pod := func() *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "store-1"},
			Spec:       corev1.PodSpec{NodeName: "nowhere", Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
	}
	m.eventually("pods are injected", func() error {
		p := pod()
		if err := m.admin.Create(m.t.Context(), p, client.DryRunAll); err != nil {
			return err
		}
		if sidecarOf(p) == nil {
			return errors.New("there is no sidecar")
		}
		return nil
	})
	p := pod()
	must(m.t, m.admin.Create(m.t.Context(), p))
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, podIP, []corev1.PodIP{{IP: podIP}}
	must(m.t, m.admin.Status().Update(m.t.Context(), p))
	return p
}

func sidecarOf(pod *corev1.Pod) *corev1.Container {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == injector.ProxyContainer })
	if i < 0 {
		return nil
	}
	return &pod.Spec.InitContainers[i]
}

// settings are those that the injector wrote, but for the name of outriggerd, which
// nobody resolves here.
func settings(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	args := sidecarOf(pod).Args
	var s bootstrap.Settings
	must(t, json.Unmarshal([]byte(args[len(args)-1]), &s))
	s.ControlPlane = "127.0.0.1:15128"
	text, err := json.Marshal(s)
	must(t, err)
	return string(text)
}

// mount writes what the kubelet would mount for the sidecar: a token of the pod, and the
// roots of the mesh.
func (m *meshOnAPIServer) mount(pod *corev1.Pod, dir string) {
	m.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{"outrigger"}, ExpirationSeconds: new(int64(3600)),
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: "default"}}
	must(m.t, m.admin.SubResource("token").Create(m.t.Context(), account, request))
	must(m.t, os.WriteFile(filepath.Join(dir, "token"), []byte(request.Status.Token), 0o600))
	var trust corev1.ConfigMap
	m.eventually("the roots are in the pod's namespace", func() error {
		return m.admin.Get(m.t.Context(), client.ObjectKey{Namespace: pod.Namespace, Name: mesh.TrustConfigMap}, &trust)
	})
	must(m.t, os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(trust.Data[identity.TrustKey]), 0o600))
}
