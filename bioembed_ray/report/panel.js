"use strict";
// The line on the picture that says where the player is; a click on the picture moves the player.
{
  const panel = document.getElementById("panel");
  const sound = document.querySelector(".panel-sound audio");
  if (panel && sound) {
    const drawing = panel.querySelector("svg"), head = document.getElementById("panel-head");
    const left = Number(panel.dataset.x0), right = Number(panel.dataset.x1);
    const seconds = Number(panel.dataset.seconds);
    const follow = () => {
      const x = left + (right - left) * Math.min(1, sound.currentTime / seconds);
      head.setAttribute("x1", x);
      head.setAttribute("x2", x);
      head.style.visibility = "visible";
      if (!sound.paused) requestAnimationFrame(follow);
    };
    sound.addEventListener("play", follow);
    sound.addEventListener("seeked", follow);
    drawing.addEventListener("click", (event) => {
      const frame = drawing.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * drawing.viewBox.baseVal.width;
      if (x < left || x > right) return;
      sound.currentTime = ((x - left) / (right - left)) * seconds;
      sound.play();
    });
  }
}
