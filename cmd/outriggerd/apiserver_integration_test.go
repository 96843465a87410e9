//go:build integration

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/manifests"
	"github.com/outrigger-mesh/outrigger/webhook"
)

const (
	// asOutriggerd in the environment makes the test binary outriggerd itself.
	asOutriggerd = "OUTRIGGER_TEST_AS_OUTRIGGERD"
	// serviceIP is the address of the webhook's Service.
	serviceIP = "10.0.0.50"
	// patience bounds every wait. It is no assertion about speed.
	patience = 2 * time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(asOutriggerd) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A meshOnAPIServer is what an outriggerd finds in a cluster, and what it leaves.
type meshOnAPIServer struct {
	t      *testing.T
	server *local.APIServer
	admin  client.Client
}

// newMesh starts an API server, and puts there what install does before outriggerd.
func newMesh(t *testing.T) *meshOnAPIServer {
	t.Helper()
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(server.Stop)
	scheme := runtime.NewScheme()
	must(t, errors.Join(clientscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)))
	admin, err := client.New(server.Config, client.Options{Scheme: scheme})
	must(t, err)
	m := &meshOnAPIServer{t: t, server: server, admin: admin}
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

func (m *meshOnAPIServer) create(o client.Object) {
	m.t.Helper()
	must(m.t, m.admin.Create(m.t.Context(), o))
}

// outriggerd starts a replica as the chart does; binary is empty for this test's own.
func (m *meshOnAPIServer) outriggerd(binary string, environment []string, args ...string) *record {
	m.t.Helper()
	if binary == "" {
		var err error
		binary, err = os.Executable()
		must(m.t, err)
	}
	return m.start(binary, append([]string{
		asOutriggerd + "=1", "KUBECONFIG=" + m.server.Kubeconfig,
		"POD_NAMESPACE=outrigger-system", "POD_NAME=outriggerd-1", "POD_UID=1",
	}, environment...), append([]string{"-proxy-image", "proxy", "-init-image", "init", "-webhook-configuration", "outrigger"}, args...)...)
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

// start runs a binary until the end of the test.
func (m *meshOnAPIServer) start(binary string, environment []string, args ...string) *record {
	m.t.Helper()
	log := &record{}
	command := exec.Command(binary, args...)
	command.Env = environment
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(m.t, command.Start())
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	m.t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		select {
		case err := <-ended:
			if err != nil {
				m.t.Errorf("%s: %v", filepath.Base(binary), err)
			}
		case <-time.After(patience):
			m.t.Errorf("%s does not end", filepath.Base(binary))
			_ = command.Process.Kill()
			<-ended
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
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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
