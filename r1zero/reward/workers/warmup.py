"""Answers of every shape, to warm the grammar with: its parser learns tables from what it reads, once per shape."""

# Read before the first worker is forked: the shapes that most answers have.
FIRST = (
    r"-\frac{3}{4}", r"2\sqrt{3}", r"\frac{\pi}{6}", r"(2, -\frac{1}{3})", r"(3, 5)", r"1, 2, 3", r"x = 5", r"2x + 3", r"\text{even}",
    r"x^2 - 1", r"3 - 4i", r"\frac{2+\sqrt{3}}{4}", r"2^{10}", r"90^\circ", r"2 \cdot 3",
)  # fmt: skip
# Compared first of all once there is time: sympy loads what it simplifies with.
EQUAL = (
    (r"u(u+3)", r"u^2 + 3u"), (r"\sqrt{12}", r"2\sqrt{3}"), (r"\frac{1}{\sqrt{5}}", r"\frac{\sqrt{5}}{5}"),
    (r"\frac{u^2-1}{u-1}", "u + 1"), (r"\sin^2 u", r"1 - \cos^2 u"), (r"2 \sin u \cos u", r"\sin 2u"), ("u > 1", "1 < u"),
    (r"\{1, \sqrt{12}\}", r"\{2\sqrt{3}, 1\}"), ("v = 2u", "2u - v = 0"), (r"\log 9", r"2 \log 3"), ("|u - 1|", "|1 - u|"),
)  # fmt: skip

# Read while nothing else is to do; the workers are then forked anew.
REST = (
    r"\left( 2, -\frac{1}{3} \right)", r"(1, 2, 3)", r"(-6, 6)", r"(6,2,1)", r"\{1, \sqrt{2}\}", r"\{-2, 2\}", r"[0, \infty)",
    r"(1, 2)", r"[1, 2]", r"(1,2]", r"[-2, 7)", r"\left[ -\frac{\pi}{2}, \frac{\pi}{2} \right]", r"(-\infty, -1) \cup (2, 3]",
    r"(-\infty, 2] \cup [5, \infty)", r"[0, 4] \setminus \{2\}", r"(-\infty, 1) \cap (0, 2)", r"2x + 3y = 7",
    r"x^2 + y^2 = 9", r"y = 2x - 1", r"y - 2x = 3", r"x + y = 5", r"x = 2 + 3 = 5", r"f(2) = 5", r"f(x) = x^2", r"2x - 5 = 1",
    r"x^2 + 2x - 1", r"(x + 1)(x - 2)^2", r"x(x + 3) + 1", r"-2x^3 + 4x - 6", r"\frac{x(x+3)}{x+2}", r"\frac{x^2+3x}{x-2}",
    r"1 \le x < 3", r"x > 2", r"2 < x", r"x \ge -1", r"3 \geq x", r"x \ne 2", r"x \leq 3.5", r"A", r"\text{(A)}", r"\text{Monday}",
    r"\log_2 3 + \ln 5", r"\log 6", r"2\log 3", r"\ln(6)", r"\log_{3}{5}", r"\frac{\ln 5}{\ln 3}", r"\ln e^2", r"\log_4 8",
    r"\sin \frac{\pi}{3}", r"2 \sin 3x \cos 2x", r"\sin 5x + \sin x", r"\cos^2 t", r"1 - \sin^2 t", r"(\cos t)^2", r"\tan 2t",
    r"\cos x^2", r"\arctan 2", r"\begin{pmatrix} 1 & -2 \\ \frac{1}{2} & 0 \end{pmatrix}", r"\begin{bmatrix}1&3\\2&4\end{bmatrix}",
    r"\begin{pmatrix} -2 \\ 3.5 \\ \frac{-1}{3} \end{pmatrix}", r"\begin{pmatrix} 1/3 \\ -2/3 \end{pmatrix}",
    r"\frac{2-3i}{5}", r"(2+i)^2", r"\frac{3}{5} - \frac{4}{5}i", r"2 \pm i", r"1-i, 2+i", r"e^{-2x}", r"e^{i\pi}", r"e^2", r"n!",
    r"\binom{n}{k}", r"n(n+2)", r"\frac{n(n-1)}{2}", r"n^2 + n", r"90^\circ", r"10\%", r"1.5 \times 10^{4}", r"2.5 \cdot 10^2",
    r"10^{-6}", r"x_1 + x_2", r"x_2", r"a_n = 2n", r"101_2", r"22_{12}", r"\pm \sqrt{5}", r"\pm 3", r"2 \pm \sqrt{3}",
    r"\frac{1 + \sqrt{5}}{2}", r"\frac{\sqrt{6} - \sqrt{2}}{4}", r"\sqrt{3+\sqrt{2}}", r"\sqrt{{2+\sqrt{{2}}}}", r"\sqrt[3]{x}",
    r"\sqrt[4]{2}", r"5^{2/3}", r"5^{1/2}", r"\frac{3}{\sqrt{2}}", r"\frac{1}{\sqrt{3}-1}", r"3 \cdot \sqrt{5}", r"3 \sqrt 5",
    r"\sqrt{\frac12}", r"x \in [1, 2]", r"x \in (-\infty, 0) \cup (0, \infty)", r"|x - 1|", r"a \cdot b", r"2^{n+1} - 1",
    r"2^{100} - 1", r"3(2^{99} - 1)", r"y^{3^{n}}", r"(y^{3})^{n}", r"y^{n^3}", r"1:2", r"\mathbb{R}", r"\emptyset", r"\{\}",
    r"\lfloor x \rfloor", r"\frac{a^2 + b^2}{2ab}", r"(2 \sqrt{2}, \frac{5 \pi}{4})", r"(4, \pi/3)", r"[\pi/6, 2\pi/3]",
    r"x = 1, y = -2", r"x = 3, x = -3", r"\frac{3}{1+\frac{1}{3}}", r"{\frac{2}{{1+{\frac{1}{3}}}}}", r"\frac{a}{\frac{b}{c}}",
    r"\frac{\frac{x}{y}}{z}", r"\pi \cdot 5", r"20 \pi", r"\frac{5\pi}{2}", r"\frac15\pi", r"\pi/5", r"3\pi^2", r"9(2-\pi)",
    r"27-8\pi", r"-8\pi + 27", r"3^{12}", r"2^2", r"3+3=6", r"6 - 2", r"3 \times 4", r"\frac{1}{5}+\frac{1}{7}", r"1 - \frac{1}{5}",
    r"\frac{2+5}{6}", r"\gcd(6, 9)", r"\lfloor 3.5 \rfloor", r"\sum_{k=1}^{n} k", r"\int_0^1 x\, dx", r"1+1+1", r"(0.5, 2)",
    r"\{0.5, 2\}", r"\left(\frac{1}{3}\right)", r"\mathbf{12}", r"a + b - c", r"2a + 3b", r"a b c", r"\frac{b}{a}", r"2.2 - 0.4i",
    r"\overline{AB}", r"\alpha + \beta", r"\theta = 3", r"2\theta", r"five", r"\frac{x+2}{x+1}", r"(x^2+1)(x-1)", r"x^2 y", r"-x",
    r"x \cdot x^2", r"\frac{1}{x^2} - 2",
)  # fmt: skip
