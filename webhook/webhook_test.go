package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

func settings() injector.Settings {
	return injector.Settings{
		Mesh: "outrigger", TrustDomain: "cluster.local",
		ControlPlane: "outriggerd.outrigger-system.svc:15128", ControlPlaneID: "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd",
		SystemNamespace: "outrigger-system", OSMMesh: "osm",
		InitImage: "example.com/outrigger-init:v1", ProxyImage: "example.com/outrigger-proxy:v1",
		Resources: injector.Resources{CPU: resource.MustParse("10m"), Memory: resource.MustParse("64Mi"), MemoryLimit: resource.MustParse("256Mi")},
	}
}

// cache is a map of namespaces, as an informer has it.
type cache map[string]injector.Namespace

func (c cache) Namespace(_ context.Context, name string) (*corev1.Namespace, error) {
	ns, ok := c[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, name)
	}
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: ns.Labels, Annotations: ns.Annotations}}, nil
}

// broken is a cache that cannot be read.
type broken struct{}

func (broken) Namespace(context.Context, string) (*corev1.Namespace, error) {
	return nil, errors.New("cache is not started")
}

func newHandler(t testing.TB, namespaces Namespaces, observe func(injector.Verdict)) http.Handler {
	t.Helper()
	return New(Config{Settings: settings(), Namespaces: namespaces, Observe: observe, Log: logr.Discard()})
}

func podRequest(t testing.TB, namespace string, pod *corev1.Pod) *admissionv1.AdmissionRequest {
	t.Helper()
	return &admissionv1.AdmissionRequest{
		UID: "u-1", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Operation: admissionv1.Create,
		Namespace: namespace, Object: runtime.RawExtension{Raw: marshal(t, pod)},
	}
}

func reviewOf(t testing.TB, r *admissionv1.AdmissionRequest) []byte {
	t.Helper()
	return marshal(t, admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func post(h http.Handler, path, contentType string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, body)
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// ask sends a review and returns the response inside the answer.
func ask(t testing.TB, h http.Handler, path string, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	t.Helper()
	w := post(h, path, "application/json", bytes.NewReader(reviewOf(t, r)))
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || w.Code != http.StatusOK || review.Response == nil {
		t.Fatalf("answer %d %q is not a review (%v)", w.Code, w.Body, err)
	}
	if review.Response.UID != r.UID || review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" {
		t.Errorf("answer is for %s in %s %s", review.Response.UID, review.APIVersion, review.Kind)
	}
	return review.Response
}

func TestHTTP(t *testing.T) {
	h := newHandler(t, cache(namespaces()), nil)
	good := reviewOf(t, podRequest(t, "enabled", pods()["silent"]))
	cases := map[string]struct {
		reason, method, path, contentType string
		body                              io.Reader
		want                              int
	}{
		"good":              {reason: "the rest of this table differs in one thing each", body: bytes.NewReader(good), want: 200},
		"with charset":      {reason: "parameters do not change the type", contentType: "application/json; charset=utf-8", body: bytes.NewReader(good), want: 200},
		"get":               {reason: "reviews are posted", method: http.MethodGet, want: 405},
		"put":               {reason: "reviews are posted", method: http.MethodPut, body: bytes.NewReader(good), want: 405},
		"form":              {reason: "only JSON is understood", contentType: "application/x-www-form-urlencoded", body: bytes.NewReader(good), want: 415},
		"no type":           {reason: "only JSON is understood", contentType: " ", body: bytes.NewReader(good), want: 415},
		"large":             {reason: "memory is not for anyone to fill", body: io.MultiReader(strings.NewReader(`{"x":"`), io.LimitReader(endless{}, maxBody)), want: 413},
		"not JSON":          {reason: "somebody else is calling", body: strings.NewReader("hello"), want: 400},
		"empty":             {reason: "somebody else is calling", body: strings.NewReader(""), want: 400},
		"null":              {reason: "OSM's validator dereferenced it", body: strings.NewReader("null"), want: 400},
		"without a request": {reason: "OSM's validator dereferenced it", body: strings.NewReader(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`), want: 400},
		"two documents":     {reason: "it is not clear which counts", body: bytes.NewReader(append(bytes.Clone(good), good...)), want: 400},
		"other path":        {reason: "a wrong configuration must be seen", path: "/mutate", body: bytes.NewReader(good), want: 404},
		"below a path":      {reason: "a wrong configuration must be seen", path: PathOn + "/x", body: bytes.NewReader(good), want: 404},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(or(tc.method, http.MethodPost), or(tc.path, PathOn), tc.body)
			r.Header.Set("Content-Type", or(tc.contentType, "application/json"))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tc.want {
				t.Errorf("%s: status %d %q, want %d", tc.reason, w.Code, w.Body, tc.want)
			}
			if w.Code == http.StatusMethodNotAllowed && w.Header().Get("Allow") != http.MethodPost {
				t.Errorf("405 must say what is allowed, got %q", w.Header().Get("Allow"))
			}
		})
	}
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestUnreadableRequests(t *testing.T) {
	h := newHandler(t, cache(namespaces()), func(v injector.Verdict) { t.Errorf("counted %v", v) })
	change := func(f func(*admissionv1.AdmissionRequest)) *admissionv1.AdmissionRequest {
		r := podRequest(t, "enabled", pods()["silent"])
		f(r)
		return r
	}
	cases := map[string]struct {
		reason  string
		request *admissionv1.AdmissionRequest
		path    string
		h       http.Handler
		code    int32
		says    string
	}{
		"update":          {reason: "an update must not be patched", request: change(func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }), code: 400, says: "UPDATE"},
		"subresource":     {reason: "pods/ephemeralcontainers is not a pod", request: change(func(r *admissionv1.AdmissionRequest) { r.SubResource = "status" }), code: 400, says: "status"},
		"other kind":      {reason: "only pods are injected", request: change(func(r *admissionv1.AdmissionRequest) { r.Kind.Kind = "Service" }), code: 400, says: "Service"},
		"no object":       {reason: "there is nothing to judge", request: change(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = nil }), code: 400, says: "decode pod"},
		"object is wrong": {reason: "there is nothing to judge", request: change(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"spec":[]}`) }), code: 400, says: "decode pod"},
		"unknown OSM namespace": {
			reason:  "its annotation decides, so guessing could leave the pod out of the mesh",
			request: change(func(r *admissionv1.AdmissionRequest) { r.Namespace = "new" }), path: PathOSM, code: 503, says: "namespace new",
		},
		"cache is broken": {reason: "the API server should retry", request: change(func(*admissionv1.AdmissionRequest) {}), h: newHandler(t, broken{}, nil), code: 500, says: "cache is not started"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.h == nil {
				tc.h = h
			}
			got := ask(t, tc.h, or(tc.path, PathOn), tc.request)
			if got.Allowed || got.Result == nil || got.Result.Code != tc.code || got.Result.Reason == "" || !strings.Contains(got.Result.Message, tc.says) {
				t.Errorf("%s: got %+v, want refusal %d that says %q", tc.reason, got, tc.code, tc.says)
			}
		})
	}
}

func TestUnknownVersion(t *testing.T) {
	h := newHandler(t, cache(namespaces()), nil)
	for _, path := range []string{PathOn, PathValidate} {
		body := bytes.Replace(reviewOf(t, podRequest(t, "enabled", pods()["silent"])), []byte("admission.k8s.io/v1"), []byte("admission.k8s.io/v1beta1"), 1)
		w := post(h, path, "application/json", bytes.NewReader(body))
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || review.Response == nil {
			t.Fatalf("%s: answer %d %q is not a review", path, w.Code, w.Body)
		}
		got := review.Response
		if got.Allowed || got.UID != "u-1" || got.Result.Code != 400 || !strings.Contains(got.Result.Message, "v1beta1") {
			t.Errorf("%s: got %+v, want a refusal that names v1beta1", path, got)
		}
	}
}

func TestInject(t *testing.T) {
	cases := map[string]struct {
		reason         string
		namespace, pod string
		path           string
		allowed        bool
		patched        bool
		says           string // in warning or refusal
		audit          injector.Reason
	}{
		"enabled":                      {reason: "one label is all it takes", namespace: "enabled", pod: "silent", path: PathOn, allowed: true, patched: true, audit: injector.NamespaceEnabled},
		"asks":                         {reason: "it asked", namespace: "disabled", pod: "label-enabled", path: PathAsk, allowed: true, patched: true, audit: injector.PodEnabled},
		"osm":                          {reason: "OSM's annotation", namespace: "osm-enabled", pod: "silent", path: PathOSM, allowed: true, patched: true, audit: injector.NamespaceEnabled},
		"typing error":                 {reason: "a typing error decides nothing", namespace: "enabled", pod: "label-typing-error", path: PathOn, says: `"on" is not allowed`, audit: injector.InvalidValue},
		"host network, asked":          {reason: "the user asked for what cannot be", namespace: "enabled", pod: "host-network-asked", path: PathOn, allowed: true, says: "hostNetwork", audit: injector.HostNetwork},
		"host network":                 {reason: "nobody asked", namespace: "enabled", pod: "host-network", path: PathOn, allowed: true, audit: injector.HostNetwork},
		"cache is behind: not there":   {reason: "the path says that the API server has the label", namespace: "unknown", pod: "silent", path: PathOn, allowed: true, patched: true, audit: injector.NamespaceEnabled},
		"cache is behind: no label":    {reason: "the path says that the API server has the label", namespace: "plain", pod: "silent", path: PathOn, allowed: true, patched: true, audit: injector.NamespaceEnabled},
		"cache is behind: disabled":    {reason: "the label has been changed since", namespace: "disabled", pod: "silent", path: PathOn, allowed: true, patched: true, audit: injector.NamespaceEnabled},
		"cache is behind: enabled":     {reason: "the label has been changed since", namespace: "enabled", pod: "silent", path: PathAsk, allowed: true, audit: injector.NamespaceDisabled},
		"cache is behind: ours, OSM":   {reason: "our label has been taken away since", namespace: "osm-and-ours", pod: "silent", path: PathOSM, allowed: true, patched: true, audit: injector.NamespaceEnabled},
		"cache agrees: other case":     {reason: "selectors are case-sensitive, words are not", namespace: "disabled-in-caps", pod: "silent", path: PathOn, allowed: true, audit: injector.NamespaceDisabled},
		"cache is behind: not ignored": {reason: "the ignore label has been taken away since", namespace: "ignored", pod: "silent", path: PathOn, allowed: true, patched: true, audit: injector.NamespaceEnabled},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var counted []injector.Reason
			h := newHandler(t, cache(namespaces()), func(v injector.Verdict) { counted = append(counted, v.Reason) })
			request := podRequest(t, tc.namespace, pods()[tc.pod])
			got := ask(t, h, tc.path, request)
			said := strings.Join(got.Warnings, "\n")
			if got.Result != nil {
				said += got.Result.Message
			}
			if got.Allowed != tc.allowed || (len(got.Patch) > 0) != tc.patched || !strings.Contains(said, tc.says) || (tc.says == "") != (said == "") {
				t.Errorf("%s: allowed %v, patch of %d bytes, said %q", tc.reason, got.Allowed, len(got.Patch), said)
			}
			if tc.patched && (got.PatchType == nil || *got.PatchType != admissionv1.PatchTypeJSONPatch) {
				t.Errorf("patch type %v", got.PatchType)
			}
			if got.AuditAnnotations[auditReason] != string(tc.audit) {
				t.Errorf("audit %v, want reason %s", got.AuditAnnotations, tc.audit)
			}
			request.DryRun = new(true)
			if diff := cmp.Diff(got, ask(t, h, tc.path, request)); diff != "" {
				t.Errorf("a dry run is answered differently:\n%s", diff)
			}
			if diff := cmp.Diff([]injector.Reason{tc.audit}, counted); diff != "" {
				t.Errorf("counted, with one dry run (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCounter(t *testing.T) {
	registry := prometheus.NewRegistry()
	count, err := Counter(registry)
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, cache(namespaces()), count)
	ask(t, h, PathOn, podRequest(t, "enabled", pods()["silent"]))
	ask(t, h, PathOn, podRequest(t, "enabled", pods()["label-typing-error"]))
	want := `# HELP outrigger_injections_total Pods that were judged at admission, by what happened to them and why.
# TYPE outrigger_injections_total counter
outrigger_injections_total{outcome="denied",reason="invalid-value"} 1
outrigger_injections_total{outcome="injected",reason="namespace-enabled"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if _, err := Counter(registry); err == nil {
		t.Error("registering twice must be told")
	}
}

// workloads are all kinds that make pods, the bare pod first and the CronJob last.
func workloads(template corev1.PodTemplateSpec, owned bool) []runtime.Object {
	meta := metav1.ObjectMeta{Name: "w"}
	if owned {
		meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "X", Name: "x", UID: "1"}}
	}
	podMeta := template.ObjectMeta
	podMeta.Name, podMeta.OwnerReferences = meta.Name, meta.OwnerReferences
	kind := func(group, kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: group, Kind: kind} }
	return []runtime.Object{
		&corev1.Pod{TypeMeta: kind("v1", "Pod"), ObjectMeta: podMeta, Spec: template.Spec},
		&appsv1.Deployment{TypeMeta: kind("apps/v1", "Deployment"), ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: template}},
		&batchv1.CronJob{TypeMeta: kind("batch/v1", "CronJob"), ObjectMeta: meta, Spec: batchv1.CronJobSpec{JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}},
	}
}

func TestValidateWarns(t *testing.T) {
	labels := map[string]string{annotation.Inject: "enabled"}
	cases := map[string]struct {
		reason, namespace string
		template          corev1.PodTemplateSpec
		says              []string
		notFor            string
	}{
		"injected": {reason: "all is well", namespace: "enabled", template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}}},
		"outside the mesh": {
			reason: "joining is the namespace owner's decision", namespace: "plain",
			template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}}, says: []string{"outrigger.dev/inject=disabled"},
		},
		"host network": {
			reason: "it cannot be", namespace: "disabled",
			template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{HostNetwork: true}}, says: []string{"hostNetwork"},
		},
		"two mistakes": {
			reason: "the pods would be refused, and each mistake is a warning of its own", namespace: "enabled",
			template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotation.ProxyCPU: "x", annotation.ExcludeUIDs: "y"}}},
			says:     []string{annotation.ProxyCPU, annotation.ExcludeUIDs},
		},
		"not about the sidecar": {
			reason: "whoever writes the workload does not see that its pods are refused; a pod is refused itself", namespace: "enabled", notFor: "Pod",
			template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotation.MTLS: "x", annotation.Inject: "enabled"}}},
			says:     []string{annotation.MTLS},
		},
		"namespace unknown": {reason: "a warning that may be wrong is worse than none", namespace: "new", template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}}},
	}
	h := newHandler(t, cache(namespaces()), func(v injector.Verdict) { t.Errorf("counted %v, but no pod was created", v) })
	for name, tc := range cases {
		tc.template.Spec.Containers = []corev1.Container{{Name: "app", Image: "example.com/app:1"}}
		for _, object := range workloads(tc.template, false) {
			gvk := object.GetObjectKind().GroupVersionKind()
			want := tc.says
			if gvk.Kind == tc.notFor {
				want = nil
			}
			t.Run(name+"/"+gvk.Kind, func(t *testing.T) {
				got := ask(t, h, PathValidate, &admissionv1.AdmissionRequest{
					UID: "u-2", Kind: metav1.GroupVersionKind(gvk), Operation: admissionv1.Create, Namespace: tc.namespace,
					Object: runtime.RawExtension{Raw: marshal(t, object)},
				})
				if !got.Allowed || len(got.Warnings) != len(want) {
					t.Fatalf("%s: allowed %v with warnings %q", tc.reason, got.Allowed, got.Warnings)
				}
				for i, says := range want {
					if !strings.Contains(got.Warnings[i], says) {
						t.Errorf("%s: warning %q does not say %q", tc.reason, got.Warnings[i], says)
					}
				}
			})
		}
	}
}

func TestValidateAllowsWhatItDoesNotKnow(t *testing.T) {
	h := newHandler(t, cache(namespaces()), nil)
	for _, r := range []*admissionv1.AdmissionRequest{
		{UID: "u", Kind: metav1.GroupVersionKind{Kind: "Rollout"}, Object: runtime.RawExtension{Raw: []byte(`{}`)}},
		{UID: "u", Kind: metav1.GroupVersionKind{Kind: "Job"}, Object: runtime.RawExtension{Raw: []byte(`{"spec":7}`)}},
		{UID: "u", Kind: metav1.GroupVersionKind{Kind: "Pod"}},
	} {
		if got := ask(t, h, PathValidate, r); !got.Allowed || len(got.Warnings) != 0 {
			t.Errorf("kind %s: %+v, want allowed without a word", r.Kind.Kind, got)
		}
	}
}

func FuzzHandler(f *testing.F) {
	for _, pod := range pods() {
		f.Add(PathOn, reviewOf(f, podRequest(f, "enabled", pod)))
	}
	f.Add(PathValidate, reviewOf(f, podRequest(f, "plain", pods()["label-enabled"])))
	f.Add(PathRefuse, reviewOf(f, podRequest(f, "enabled", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotation.MTLS: "x"}}})))
	f.Add(PathOSM, []byte(`{"request":{"uid":"x","object":null}}`))
	h := newHandler(f, cache(namespaces()), nil)
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " ?#%\\\x00") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r > '~' }) {
			path = PathOn
		}
		w := post(h, path, "application/json", bytes.NewReader(body))
		switch {
		case w.Code == http.StatusOK:
			var review admissionv1.AdmissionReview
			if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || review.Response == nil {
				t.Fatalf("answer %q is not a review: %v", w.Body, err)
			}
			if r := review.Response; !r.Allowed && (r.Result == nil || r.Result.Message == "") {
				t.Errorf("refused without a word: %q", w.Body)
			}
		case w.Code < 300 || w.Code >= 500:
			t.Errorf("status %d for %q", w.Code, body)
		}
	})
}

// TestInjectionFollowsTheTrustDomain has pods that are made while the mesh moves.
func TestInjectionFollowsTheTrustDomain(t *testing.T) {
	moved := false
	h := New(Config{Settings: settings(), Namespaces: cache(namespaces()), Log: logr.Discard(), Adjust: func(s *injector.Settings) {
		if moved {
			s.TrustDomain, s.AlsoTrusted = "mesh.new", []string{"cluster.local"}
		}
	}})
	patch := func() string {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		return string(ask(t, h, PathOn, podRequest(t, "shop", pod)).Patch)
	}
	const before, after = `\"trustDomain\":\"cluster.local\",\"controlPlane\"`, `\"trustDomain\":\"mesh.new\",\"alsoTrusted\":[\"cluster.local\"],\"controlPlane\"`
	if got := patch(); !strings.Contains(got, before) {
		t.Errorf("the patch does not have %s:\n%s", before, got)
	}
	moved = true
	if got := patch(); !strings.Contains(got, after) {
		t.Errorf("the patch does not have %s:\n%s", after, got)
	}
}
