//go:build integration

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/manifests"
	"github.com/outrigger-mesh/outrigger/webhook"
)

const (
	// binaries in the environment makes the test binary what runs in a network
	// namespace, and holds the folder of the binaries that are tested.
	binaries = "OUTRIGGER_TEST_BINARIES"
	// The addresses of the webhook's Service and of the pod.
	serviceIP, podIP = "10.0.0.50", "10.0.0.51"
	// patience bounds every wait. It is no assertion about speed.
	patience = time.Minute
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
	log := m.start(filepath.Join(dir, "outriggerd"), []string{
		"KUBECONFIG=" + server.Kubeconfig, "POD_NAMESPACE=outrigger-system", "POD_NAME=outriggerd-1", "POD_UID=1",
	}, "-proxy-image", "proxy", "-init-image", "init", "-webhook-configuration", "outrigger", "-webhook-address", serviceIP+":443",
		"-xds-address", "127.0.0.1:15128")
	m.eventually("outriggerd is ready", func() error { return answers("http://127.0.0.1:9091/readyz") })

	pod := m.injected()
	state := t.TempDir()
	m.mount(pod, state)
	m.start(filepath.Join(dir, "outrigger-agent"), []string{
		bootstrap.EnvPodNamespace + "=shop", bootstrap.EnvPodName + "=" + pod.Name, bootstrap.EnvPodUID + "=" + string(pod.UID),
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

// A meshOnAPIServer is what an outriggerd finds in a cluster, and what it leaves.
type meshOnAPIServer struct {
	t     *testing.T
	admin client.Client
}

func newMesh(t *testing.T, server *local.APIServer) *meshOnAPIServer {
	t.Helper()
	scheme := runtime.NewScheme()
	must(t, errors.Join(clientscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)))
	admin, err := client.New(server.Config, client.Options{Scheme: scheme})
	must(t, err)
	m := &meshOnAPIServer{t: t, admin: admin}
	for name, labels := range map[string]map[string]string{"outrigger-system": nil, "shop": {annotation.Inject: "enabled"}} {
		must(t, admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
		must(t, admin.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}))
	}
	must(t, admin.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "outrigger-system", Name: webhookService},
		Spec:       corev1.ServiceSpec{ClusterIP: serviceIP, Ports: []corev1.ServicePort{{Port: 443}}},
	}))
	mutating, validating := webhook.Configurations(webhook.Options{Name: "outrigger", SystemNamespace: "outrigger-system", Service: webhookService})
	must(t, errors.Join(admin.Create(t.Context(), mutating), admin.Create(t.Context(), validating)))
	entries, err := manifests.Chart.ReadDir("crds")
	must(t, err)
	for _, entry := range entries {
		text, err := manifests.Chart.ReadFile("crds/" + entry.Name())
		must(t, err)
		crd := &apiextensionsv1.CustomResourceDefinition{}
		must(t, errors.Join(yaml.Unmarshal(text, crd), admin.Create(t.Context(), crd)))
		m.eventually(crd.Name+" is served", func() error {
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(crd), crd); err != nil {
				return err
			}
			established := func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
				return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
			}
			if !slices.ContainsFunc(crd.Status.Conditions, established) {
				return errors.New("not established")
			}
			return nil
		})
	}
	return m
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

// A record is what a process writes.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// start runs a binary that may use approved algorithms only, until the end of the test.
func (m *meshOnAPIServer) start(binary string, environment []string, args ...string) *record {
	m.t.Helper()
	log := &record{}
	command := exec.Command(binary, args...)
	command.Env = append([]string{"GODEBUG=fips140=only"}, environment...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(m.t, command.Start())
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	m.t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			m.t.Errorf("%s: %v", filepath.Base(binary), err)
		}
		if m.t.Failed() {
			m.t.Logf("%s:\n%s", filepath.Base(binary), log)
		}
	})
	return log
}

func (m *meshOnAPIServer) eventually(what string, check func() error) {
	m.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			m.t.Fatalf("waited for: %s: %v", what, err)
		}
	}
}

func answers(url string) error {
	_, err := get(url)
	return err
}

func get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience) //nolint:forbidigo // bounded by patience
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
