//go:build integration

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// injected makes a pod, once the API server has pods injected, and has it run.
func (m *meshOnAPIServer) injected(change func(*corev1.Pod)) *corev1.Pod {
	m.t.Helper()
	pod := func() *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "store-1"},
			Spec:       corev1.PodSpec{NodeName: "nowhere", Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		change(p)
		return p
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
	m.create(p)
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

// agent starts the agent of a pod, with what is mounted for it, and waits until it is
// ready.
func (m *meshOnAPIServer) agent(dir, environment string, pod *corev1.Pod, mounted ...func(state string)) {
	m.t.Helper()
	state := m.t.TempDir()
	m.mount(pod, state)
	for _, mount := range mounted {
		mount(state)
	}
	m.start(filepath.Join(dir, "outrigger-agent"), []string{
		environment, bootstrap.EnvPodNamespace + "=shop", bootstrap.EnvPodName + "=" + pod.Name, bootstrap.EnvPodUID + "=" + string(pod.UID),
		bootstrap.EnvServiceAccount + "=default", bootstrap.EnvPodIPs + "=" + podIP,
	}, "-state", state+"/state", "-token", state+"/token", "-trust", state+"/ca.crt", "-identity", state+"/identity",
		"-envoy", os.Getenv("ENVOY"), "proxy", settings(m.t, pod))
	m.eventually("the sidecar is ready", func() error { return answers("http://" + podIP + ":15020/ready") })
}

// connected is what outriggerd says of a proxy.
type connected struct {
	Proxy, Identity, TLS, TrustDomain string
	Roots                             []string
}

// proxy waits until outriggerd serves one proxy, and that is as it should be.
func (m *meshOnAPIServer) proxy(isGood func(connected) bool) connected {
	m.t.Helper()
	var proxies []connected
	m.eventually("outriggerd serves the proxy", func() error {
		text, err := get("http://127.0.0.1:9092/debug/proxies")
		if err == nil {
			err = yaml.Unmarshal([]byte(text), &proxies)
		}
		if err == nil && (len(proxies) != 1 || !isGood(proxies[0])) {
			err = fmt.Errorf("it serves %+v", proxies)
		}
		return err
	})
	return proxies[0]
}

// settings are those that the injector wrote, but for the name of outriggerd, which
// nobody resolves here.
func settings(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	args := sidecarOf(pod).Args
	var s bootstrap.Settings
	must(t, json.Unmarshal([]byte(args[len(args)-1]), &s))
	s.ControlPlane = podIP + ":15128"
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
